/* A hostile pause for the scenarios in hostile_pods.rs. A sandbox gets no arguments, so the name of its pod, which is its host name,
   selects what it shows instead of a status: "hostile-" and a name below. As a container with arguments it starts processes that are hard to
   observe. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/prctl.h>

#define COMPUTED "?"
#define NO_SUM ""
#define STATUS(zombies, reaped, version, format)                                                              \
  "zombies=" zombies, "reaped=" reaped, "processes=1003", "threads=1003",        \
      "peak_zombies=1000", "version=" version, "format=" format

static const struct { const char *name, *sum, *items[15]; } texts[] = {
    /* Well-formed: a reader that trusts it reports a thousand zombies. */
    {"lies", COMPUTED, {STATUS("1000", "0", "0.1.0", "1")}},
    {"sumless", NO_SUM, {STATUS("1000", "0", "0.1.0", "1")}},
    {"changing", COMPUTED, {STATUS("1000", "0", "0.1.0", "1")}},
    {"twice", COMPUTED, {STATUS("1000", "0", "0.1.0", "1"), "zombies=0"}},
    {"next-format", COMPUTED, {STATUS("1000", "0", "0.1.0", "2")}},
    {"latin", COMPUTED, {STATUS("1000", "0", "0.1.0\xe9", "1")}},
    {"negative", COMPUTED, {STATUS("-1", "0", "0.1.0", "1")}},
    {"past-63", COMPUTED, {STATUS("0", "9223372036854775809", "0.1.0", "1")}},
    {"past-64", COMPUTED, {STATUS("1000", "18446744073709551616", "0.1.0", "1")}},
    /* No status. */
    {"garbage", NO_SUM, {"\xff\xfe\x80", "\xe9=\xc3(", "\xed\xa0\x80"}},
};

enum { MANY = 15, LONG = 128 * 1024 - 1 };

static void end(int number) { (void)number; _exit(0); }
static void wait_forever(void) { for (;;) pause(); }
static int is(const char *what, const char *name) { return what && !strncmp(what, name, strlen(name)); }

/* Executes this binary again with the command line to show; the variable marks the second execution. */
static void show(char **argv) {
  char *environment[] = {"SHOWN=1", NULL};
  execve("/pause", argv, environment);
}

static void show_status(const char *const *items, const char *sum) {
  static char last[24];
  char *argv[20] = {"/pause"};
  uint32_t hash = 0x811c9dc5;
  int count = 1;
  for (; *items; items++) {
    argv[count++] = (char *)*items;
    /* Each item with its terminating NUL. */
    for (size_t at = 0; at <= strlen(*items); at++) hash = (hash ^ (unsigned char)(*items)[at]) * 0x01000193;
  }
  snprintf(last, sizeof last, "checksum=%s", sum);
  if (!strcmp(sum, COMPUTED)) snprintf(last, sizeof last, "checksum=%08x", hash);
  if (*sum) argv[count++] = last;
  show(argv);
}

static void show_huge(void) {
  char *argv[MANY + 2] = {"/pause"};
  for (int i = 1; i <= MANY; i++) {
    argv[i] = calloc(1, LONG + 1);
    memset(argv[i], 'z', LONG);
  }
  show(argv);
}

/* Removes the address of the arguments in the kernel: /proc/<pid>/cmdline is empty, like that of a zombie. */
static void hide_arguments(void) {
  uint64_t here = (uint64_t)(uintptr_t)texts;
  struct prctl_mm_map map = {here, here + 1, here, here, here, here, here, here, here, here, here, NULL, 0, (uint32_t)-1};
  if (prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof map, 0)) perror("PR_SET_MM_MAP");
}

static void be_pause(char **argv) {
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  const char *what = is(host, "hostile-") ? host + strlen("hostile-") : NULL;
  if (!getenv("SHOWN") && !is(what, "nameless")) {
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
      if (is(what, texts[i].name)) show_status(texts[i].items, texts[i].sum);
    if (is(what, "huge")) show_huge();
    if (is(what, "blank")) show((char *[]){"", NULL});
    show((char *[]){"/pause", NULL});
  }
  signal(SIGCHLD, SIG_IGN);
  if (is(what, "empty")) hide_arguments();
  if (is(what, "changing"))
    for (unsigned turn = 0;; turn++) memset(argv[1] + strlen("zombies="), '0' + turn % 10, 4);
  wait_forever();
}

/* A name may have any bytes; those that JSON cannot encode are given as %xx. */
static void unescape(char *text) {
  char *out = text;
  for (unsigned byte; *text; out++)
    if (sscanf(text, "%%%2x", &byte) == 1) *out = (char)byte, text += 3;
    else *out = *text++;
  *out = 0;
}

/* Waits for SIGUSR1, then starts children that exit, and never waits for them. */
static void be_unreaping_parent(int children, char *name) {
  sigset_t go;
  int number;
  sigemptyset(&go);
  sigaddset(&go, SIGUSR1);
  sigprocmask(SIG_BLOCK, &go, NULL);
  unescape(name);
  prctl(PR_SET_NAME, name);
  printf("%d\n", getpid());
  fflush(stdout);
  sigwait(&go, &number);
  while (children--)
    if (!fork()) _exit(0);
  wait_forever();
}

static void be_crowd(int children) {
  while (children--)
    if (!fork()) wait_forever();
  wait_forever();
}

// One line for each 4,096 processes.
static void recycle_pids(void) {
  for (unsigned long forks = 1;; forks++) {
    pid_t child = fork();
    if (!child) _exit(0);
    waitpid(child, NULL, 0);
    if (child > 0 && forks % 4096 == 0 && write(STDOUT_FILENO, "recycled\n", 9) != 9) _exit(1);
  }
}

int main(int argc, char **argv) {
  const char *role = argc > 1 ? argv[1] : "";
  signal(SIGTERM, end);
  signal(SIGINT, end);
  if (!strcmp(role, "crowd") && argc == 3) be_crowd(atoi(argv[2]));
  if (!strcmp(role, "parent") && argc == 4) be_unreaping_parent(atoi(argv[2]), argv[3]);
  if (!strcmp(role, "recycle")) recycle_pids();
  be_pause(argv);
}
