/* Uses eplb, then the plugins whose paths are given. "host cuda" prints whether CUDA is available, and why
 * not. */
#include "use_eplb.h"

#include <dlfcn.h>
#include <eplb.h>
#include <stdio.h>
#include <string.h>

static int use_plugin(const char *path) {
    void *plugin = dlopen(path, RTLD_NOW);
    void *symbol = plugin == NULL ? NULL : dlsym(plugin, "plugin_run");
    if (symbol == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    int (*run)(void);
    memcpy(&run, &symbol, sizeof run);
    return run();
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "cuda") == 0) {
        const int available = eplb_cuda_available();
        printf("%d %s\n", available, eplb_last_error_message());
        return 0;
    }
    int failed = use_eplb();
    for (int i = 1; i < argc && !failed; i++) {
        failed = use_plugin(argv[i]);
    }
    return failed;
}
