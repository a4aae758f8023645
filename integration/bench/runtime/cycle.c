/* One container's life as an engine drives it: create, start, wait for its end, delete. In C and static, so that the bench measures
 * the runtime and not its caller.
 *
 *     cycle RUNTIME STATE_DIR BUNDLE ID
 */
#define _GNU_SOURCE
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void fail(const char *what) {
    fprintf(stderr, "cycle: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void call(char **args) {
    pid_t pid;
    int status;
    errno = posix_spawn(&pid, args[0], NULL, NULL, args, environ);
    if (errno != 0)
        fail(args[0]);
    if (waitpid(pid, &status, 0) < 0)
        fail("wait for the runtime");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "cycle: %s %s ended with status %#x\n", args[0], args[3], status);
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: cycle RUNTIME STATE_DIR BUNDLE ID\n");
        return 2;
    }
    char *runtime = argv[1], *state = argv[2], *bundle = argv[3], *id = argv[4], pid_file[4096];
    int init = 0, status;
    snprintf(pid_file, sizeof pid_file, "%s/%s.pid", bundle, id);
    /* The container's init becomes our child when create ends. */
    if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
        fail("become a subreaper");
    call((char *[]){runtime, "--root", state, "create", "--bundle", bundle, "--pid-file", pid_file, id, NULL});
    FILE *file = fopen(pid_file, "r");
    if (!file || fscanf(file, "%d", &init) != 1)
        fail(pid_file);
    fclose(file);
    call((char *[]){runtime, "--root", state, "start", id, NULL});
    if (waitpid(init, &status, 0) < 0)
        fail("wait for the container");
    call((char *[]){runtime, "--root", state, "delete", id, NULL});
    if (unlink(pid_file) < 0)
        fail(pid_file);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
