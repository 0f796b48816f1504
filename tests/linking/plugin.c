/* A shared object that exports one function of its own, and nothing of the library inside. */
#include "use_eplb.h"

__attribute__((visibility("default"))) int plugin_run(void);

int plugin_run(void) { return use_eplb(); }
