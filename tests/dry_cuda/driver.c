/* A CUDA driver without a GPU, as far as Triton asks one: see runtime.c. */
#include <stdlib.h>
#include <string.h>

#define HERE __attribute__((visibility("default")))

void dry_note(const char *format, ...);
int cudaDeviceGetAttribute(int *value, int attribute);

static char something[4096];

static int made(void **thing) { *thing = something; return 0; }

HERE int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
HERE int cuDeviceGet(int *device, int number) { *device = number; return 0; }
HERE int cuDeviceGetCount(int *devices) { *devices = 1; return 0; }
HERE int cuDeviceGetName(char *name, int room) { strncpy(name, "no GPU", room); return 0; }
HERE int cuDeviceTotalMem_v2(size_t *size) { *size = (size_t)8 << 30; return 0; }
HERE int cuDeviceGetAttribute(int *value, int attribute) {
    return cudaDeviceGetAttribute(value, attribute);
}
HERE int cuCtxGetCurrent(void **context) { return made(context); }
HERE int cuCtxGetDevice(int *device) { *device = 0; return 0; }
HERE int cuDevicePrimaryCtxRetain(void **context) { return made(context); }
HERE int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0, *active = 1;
    return 0;
}
HERE int cuModuleLoadData(void **module) { return made(module); }
HERE int cuModuleGetFunction(char **function, void *module, const char *name) {
    *function = strdup(name);
    return 0;
}
HERE int cuFuncGetAttribute(int *value, int attribute) {
    *value = attribute == 0 ? 1024 : 0; /* threads of a block */
    return 0;
}
HERE int cuLaunchKernelEx(void *settings, const char *function) {
    dry_note("kernel %s", function);
    return 0;
}
HERE int cuLaunchKernel(const char *function) { dry_note("kernel %s", function); return 0; }
HERE int cuGetErrorString(int error, const char **text) { *text = "an error"; return 0; }
HERE int cuPointerGetAttribute(void **value, int attribute, void *pointer) {
    *value = pointer;
    return 0;
}
