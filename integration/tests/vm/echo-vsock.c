// Echoes what comes to a vsock port: echo-vsock PORT. Says "listening"; ends when a connection begins with '!'.
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void end(int signal) {
    (void)signal;
    _exit(0);
}

static void echo(int fd) {
    static char buffer[1 << 16];
    for (int is_first = 1;; is_first = 0) {
        ssize_t n = read(fd, buffer, sizeof buffer);
        if (n <= 0)
            return;
        if (is_first && buffer[0] == '!')
            kill(getppid(), SIGUSR1);
        for (ssize_t at = 0; at < n;) {
            ssize_t written = write(fd, buffer + at, n - at);
            if (written <= 0)
                return;
            at += written;
        }
    }
}

int main(int argc, char **argv) {
    signal(SIGUSR1, end);
    signal(SIGCHLD, SIG_IGN);
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = atoi(argv[argc - 1])};
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 64)) {
        perror("echo-vsock");
        return 1;
    }
    // What the guest asks the host for is refused.
    struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = 22};
    int asking = socket(AF_VSOCK, SOCK_STREAM, 0);
    puts(connect(asking, (struct sockaddr *)&host, sizeof host) ? "refused" : "connected to the host");
    puts("listening");
    fflush(stdout);
    for (;;) {
        int one = accept(fd, NULL, NULL);
        if (one < 0)
            continue;
        if (fork() == 0) {
            echo(one);
            _exit(0);
        }
        close(one);
    }
}
