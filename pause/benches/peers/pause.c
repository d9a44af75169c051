/*
 * The yardstick: a C program that does what contract 2 of the design says of pause and nothing more. No status, no
 * scan. It must stay the leanest honest way to say it in C, or the ratios flatter us.
 *
 * Built by the benchmark: cc -Os -static -s
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIGNALS_NOT_BLOCKED 1
#define IMPOSSIBLE 42

static void say(int where, const char *line)
{
    /* There is nobody to tell if that fails. */
    ssize_t written = write(where, line, strlen(line));
    (void)written;
}

static int asks_for_version(const char *option)
{
    return !strcmp(option, "-v") || !strcmp(option, "-V") || !strcmp(option, "--version");
}

int main(int argc, char **argv)
{
    sigset_t all, ours;

    sigfillset(&all);
    /* An inherited SIG_IGN would have the kernel reap behind our back. */
    signal(SIGCHLD, SIG_DFL);
    if (sigprocmask(SIG_BLOCK, &all, NULL)) {
        say(2, "pause: signals cannot be blocked\n");
        return SIGNALS_NOT_BLOCKED;
    }
    for (int i = 1; i < argc; i++) {
        if (asks_for_version(argv[i])) {
            say(1, "pause.c 1\n");
            return 0;
        }
    }
    if (getpid() != 1)
        say(2, "Warning: pause should be the first process\n");
    if (chdir("/")) {
        /* Nothing hangs on it. */
    }
    close_range(3, ~0U, 0);

    sigemptyset(&ours);
    sigaddset(&ours, SIGINT);
    sigaddset(&ours, SIGTERM);
    sigaddset(&ours, SIGCHLD);
    for (;;) {
        switch (sigwaitinfo(&ours, NULL)) {
        case SIGCHLD:
            while (waitpid(-1, NULL, WNOHANG) > 0)
                ;
            break;
        case SIGINT:
            say(2, "Shutting down, got signal: Interrupt\n");
            return 0;
        case SIGTERM:
            say(2, "Shutting down, got signal: Terminated\n");
            return 0;
        default:
            /* A debugger or a freezer interrupts; nothing else can happen. */
            if (errno != EINTR) {
                say(2, "pause: this must not happen\n");
                return IMPOSSIBLE;
            }
        }
    }
}
