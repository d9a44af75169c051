/* A third-party pause: it waits, reaps by ignoring SIGCHLD, and has no status. */
#include <signal.h>
#include <unistd.h>
static void end(int number) { (void)number; _exit(0); }
int main(void) { signal(SIGCHLD, SIG_IGN); signal(SIGTERM, end); signal(SIGINT, end); for (;;) pause(); }
