/* Preloaded into writers, for the file systems of clusters.
   EPLB_FLOCK=0: flock() succeeds and locks nothing; another number: it fails with that errno.
   EPLB_RENAME=N: rename() is carried out and fails with errno N. EPLB_RENAME=-N: it is not carried out. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

int flock(int fd, int operation) {
    const char *number = getenv("EPLB_FLOCK");
    if (number == NULL) {
        return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, operation);
    }
    errno = atoi(number);
    return errno == 0 ? 0 : -1;
}

int rename(const char *from, const char *to) {
    const char *number = getenv("EPLB_RENAME");
    const int code = number == NULL ? 0 : atoi(number);
    if (code < 0) {
        errno = -code;
        return -1;
    }
    const int renamed = ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename"))(from, to);
    if (renamed == 0 && code > 0) {
        errno = code;
        return -1;
    }
    return renamed;
}
