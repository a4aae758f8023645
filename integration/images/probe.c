// The program the end-to-end tests run inside containers: static, so that it needs nothing of the image but itself.
//
//   probe noise SEED SIZE          SIZE bytes that do not compress, the same for the same seed
//   probe sum FILE...              per file: "FILE sum=HEX size=N", or "FILE errno=NAME"; exit 1 if any failed
//   probe storm DIR                opens and reads every file of DIR under a signal every 10 ms (handler without SA_RESTART):
//                                  "opened=N failed=N signals=N"; exit 1 if any failed
//   probe hold FILE DIR GO         holds FILE open and mapped, sits in DIR, prints "ready"; when the file GO appears prints
//                                  "cwd=… exe=… fd=HEX map=HEX" and ends
//
// Sums are 64-bit FNV-1a.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

static const uint64_t FNV_START = 0xcbf29ce484222325u;

static uint64_t fnv(uint64_t sum, const unsigned char *bytes, size_t len) {
    for (size_t i = 0; i < len; i++)
        sum = (sum ^ bytes[i]) * 0x100000001b3u;
    return sum;
}

// Sum of the whole file behind fd, read from offset 0; -1 and errno on failure. Interrupted reads go on.
static int sum_fd(int fd, uint64_t *sum, uint64_t *size) {
    static unsigned char buffer[1 << 16];
    *sum = FNV_START;
    *size = 0;
    for (;;) {
        ssize_t n = pread(fd, buffer, sizeof buffer, (off_t)*size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            return 0;
        *sum = fnv(*sum, buffer, (size_t)n);
        *size += (uint64_t)n;
    }
}

static int sum_path(const char *path, uint64_t *sum, uint64_t *size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int result = sum_fd(fd, sum, size);
    int saved = errno;
    close(fd);
    errno = saved;
    return result;
}

static int noise(const char *seed_text, const char *size_text) {
    uint64_t state = strtoull(seed_text, NULL, 10) * 0x9e3779b97f4a7c15u + 1;
    for (uint64_t left = strtoull(size_text, NULL, 10); left > 0;) {
        uint64_t words[1024];
        for (int i = 0; i < 1024; i++) { // xorshift64*
            state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
            words[i] = state * 0x2545f4914f6cdd1du;
        }
        size_t n = left < sizeof words ? (size_t)left : sizeof words;
        if (fwrite(words, 1, n, stdout) != n)
            return 1;
        left -= n;
    }
    return fflush(stdout) == 0 ? 0 : 1;
}

static int sums(char **paths) {
    int failed = 0;
    for (; *paths; paths++) {
        uint64_t sum, size;
        if (sum_path(*paths, &sum, &size) == 0) {
            printf("%s sum=%016lx size=%lu\n", *paths, sum, size);
        } else {
            printf("%s errno=%s\n", *paths, strerrorname_np(errno));
            failed = 1;
        }
        fflush(stdout);
    }
    return failed;
}

static volatile sig_atomic_t signals;

static void count_signal(int number) {
    (void)number;
    signals++;
}

static int storm(const char *dir) {
    struct sigaction action = {.sa_handler = count_signal};
    struct itimerval every = {.it_interval = {.tv_usec = 10000}, .it_value = {.tv_usec = 10000}};
    if (sigaction(SIGALRM, &action, NULL) || setitimer(ITIMER_REAL, &every, NULL) || chdir(dir)) {
        perror(dir);
        return 2;
    }
    DIR *entries = opendir(".");
    if (!entries) {
        perror(dir);
        return 2;
    }
    int opened = 0, failed = 0;
    for (struct dirent *entry; (entry = readdir(entries));) {
        uint64_t sum, size;
        struct stat status;
        if (stat(entry->d_name, &status) || !S_ISREG(status.st_mode))
            continue;
        if (sum_path(entry->d_name, &sum, &size) == 0 && size == (uint64_t)status.st_size) {
            opened++;
        } else {
            printf("%s errno=%s\n", entry->d_name, strerrorname_np(errno));
            failed++;
        }
    }
    printf("opened=%d failed=%d signals=%d\n", opened, failed, (int)signals);
    return failed != 0;
}

static int hold(const char *file, const char *dir, const char *go) {
    int fd = open(file, O_RDONLY);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) || chdir(dir)) {
        perror(file);
        return 2;
    }
    unsigned char *map = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) {
        perror(file);
        return 2;
    }
    puts("ready");
    fflush(stdout);
    while (access(go, F_OK) != 0)
        usleep(20000);
    char cwd[PATH_MAX], exe[PATH_MAX] = "";
    uint64_t sum, size;
    if (!getcwd(cwd, sizeof cwd))
        snprintf(cwd, sizeof cwd, "errno=%s", strerrorname_np(errno));
    if (readlink("/proc/self/exe", exe, sizeof exe - 1) < 0)
        snprintf(exe, sizeof exe, "errno=%s", strerrorname_np(errno));
    if (sum_fd(fd, &sum, &size)) {
        printf("fd errno=%s\n", strerrorname_np(errno));
        return 1;
    }
    printf("cwd=%s exe=%s fd=%016lx map=%016lx\n", cwd, exe, sum, fnv(FNV_START, map, (size_t)status.st_size));
    return fflush(stdout) == 0 ? 0 : 1;
}

int main(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "";
    if (!strcmp(verb, "noise") && argc == 4)
        return noise(argv[2], argv[3]);
    if (!strcmp(verb, "sum") && argc >= 3)
        return sums(argv + 2);
    if (!strcmp(verb, "storm") && argc == 3)
        return storm(argv[2]);
    if (!strcmp(verb, "hold") && argc == 5)
        return hold(argv[2], argv[3], argv[4]);
    fprintf(stderr, "probe: usage: probe noise SEED SIZE | sum FILE... | storm DIR | hold FILE DIR GO\n");
    return 64;
}
