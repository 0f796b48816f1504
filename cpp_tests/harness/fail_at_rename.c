/* Preloaded into ranks. Rank 3's dump fails at its last step, the rename of the partial file. With
   EPLB_FAIL=die the rank dies after the dumps of all others. With EPLB_FAIL=full the disk is full while the
   others still write. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void wait_for(const char *folder, size_t length, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%.*s%s", (int)length, folder, name);
    for (int tries = 0; access(path, F_OK) != 0 && tries < 6000; tries++) {
        usleep(10000);
    }
}

static void wait_for_the_others(const char *folder, size_t length) {
    for (int rank = 0; rank < 8; rank++) {
        char name[64];
        snprintf(name, sizeof name, "rank%d.safetensors", rank);
        if (rank != 3) {
            wait_for(folder, length, name);
        }
    }
    wait_for(folder, length, "meta_info.json");
}

int rename(const char *from, const char *to) {
    const char *how = getenv("EPLB_FAIL"), *name = strrchr(to, '/');
    if (how != NULL && name != NULL && strstr(name, ".safetensors") != NULL) {
        if (strcmp(name, "/rank3.safetensors") != 0) {
            usleep(strcmp(how, "full") == 0 ? 500000 : 0);
        } else if (strcmp(how, "full") == 0) {
            errno = ENOSPC;
            return -1;
        } else {
            wait_for_the_others(to, (size_t)(name + 1 - to));
            kill(getpid(), SIGKILL);
        }
    }
    int (*next)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    return next(from, to);
}
