/* Preloaded into ranks: rank 3 dies while it writes its dump, with all of it in the partial file, once the
   others' dumps are whole. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void wait_for_the_others(const char *target, size_t folder) {
    for (int rank = 0; rank < 8; rank++) {
        char path[4096];
        snprintf(path, sizeof path, "%.*srank%d.safetensors", (int)folder, target, rank);
        for (int tries = 0; rank != 3 && access(path, F_OK) != 0 && tries < 6000; tries++) {
            usleep(10000);
        }
    }
}

int rename(const char *from, const char *to) {
    const char *name = strrchr(to, '/');
    if (name != NULL && strcmp(name, "/rank3.safetensors") == 0) {
        wait_for_the_others(to, (size_t)(name + 1 - to));
        kill(getpid(), SIGKILL);
    }
    int (*next)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    return next(from, to);
}
