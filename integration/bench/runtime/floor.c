/* The floor of the runtime bench: the least that a container with the spec bundle's namespaces and mounts costs. One clone3, the
 * mounts, pivot_root, execve; no configuration is read, nothing is checked, limited, masked or recorded.
 *
 *     floor ROOTFS PROGRAM
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void check(int result, const char *what) {
    if (result < 0) {
        dprintf(2, "floor: %s: %s\n", what, strerror(errno));
        _exit(1);
    }
}

static void inside(const char *root, char *program) {
    const unsigned long nothing = MS_NOSUID | MS_NOEXEC | MS_NODEV;
    check(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL), "isolate");
    check(mount(root, root, NULL, MS_BIND | MS_REC, NULL), "bind the root");
    check(chdir(root), "enter the root");
    check(mount("proc", "proc", "proc", 0, NULL), "proc");
    check(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"), "dev");
    check(mkdir("dev/pts", 0755), "mkdir");
    check(mkdir("dev/shm", 0755), "mkdir");
    check(mkdir("dev/mqueue", 0755), "mkdir");
    check(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"), "devpts");
    check(mount("shm", "dev/shm", "tmpfs", nothing, "mode=1777,size=65536k"), "shm");
    check(mount("mqueue", "dev/mqueue", "mqueue", nothing, NULL), "mqueue");
    check(mount("sysfs", "sys", "sysfs", nothing | MS_RDONLY, NULL), "sysfs");
    check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    check(umount2(".", MNT_DETACH), "leave the host's tree");
    check(chdir("/"), "chdir");
    char *args[] = {program, NULL}, *env[] = {"PATH=/bin", NULL};
    execve(program, args, env);
    check(-1, "execve");
}

int main(int argc, char **argv) {
    if (argc != 3) {
        dprintf(2, "usage: floor ROOTFS PROGRAM\n");
        return 2;
    }
    struct clone_args args = {
        .flags = CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS,
        .exit_signal = SIGCHLD,
    };
    long pid = syscall(SYS_clone3, &args, sizeof args);
    check((int)pid, "clone3");
    if (pid == 0)
        inside(argv[1], argv[2]);
    int status;
    check(waitpid((pid_t)pid, &status, 0), "wait");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
