/* A CUDA runtime without a GPU: memory of the "device" is the host's, kernels are written down and
 * not run. ONNX Runtime's CUDA provider opens files with it, places their operators, starts its
 * kernels, captures graphs; so does torch. Which kernels, how many, what is copied: that is real. No
 * number that comes out is.
 *
 * Functions that are not here do nothing and succeed; `__init__.py` writes them. It finds the ones
 * here by the word at the start of their lines.
 */
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define __CUDA_RUNTIME_API_H__
#include <driver_types.h>
#include <vector_types.h>

#define HERE __attribute__((visibility("default")))

/* --- the record --------------------------------------------------------------------------- */

static char *record;
static size_t used, room;
static int recording;

HERE void dry_start(void) { used = 0; recording = 1; }
HERE const char *dry_stop(void) { recording = 0; return used ? record : ""; }

HERE void dry_note(const char *format, ...) {
    if (!recording) return;
    if (room - used < 8192) record = realloc(record, room += 1 << 20);
    va_list arguments;
    va_start(arguments, format);
    used += vsnprintf(record + used, 8000, format, arguments);
    va_end(arguments);
    record[used++] = '\n';
    record[used] = 0;
}

/* --- kernels ------------------------------------------------------------------------------ */

static struct { const void *function; const char *name; } known[1 << 18];
static int count;
static const void *token_offset;

HERE void **__cudaRegisterFatBinary(void *binary) { return calloc(1, 64); }
HERE void __cudaRegisterFatBinaryEnd(void **handle) {}
HERE void __cudaUnregisterFatBinary(void **handle) {}
HERE void __cudaRegisterVar(void) {}
HERE void __cudaRegisterFunction(void **handle, const char *function, char *device_function,
                                 const char *name) {
    if (count == sizeof known / sizeof *known) return;
    if (strstr(name, "getTokenOffset")) token_offset = function;
    known[count].function = function;
    known[count++].name = name;
}

static struct { dim3 grid, block; size_t shared; void *stream; } next;

HERE unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    next.grid = grid, next.block = block, next.shared = shared, next.stream = stream;
    return 0;
}
HERE int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void **stream) {
    *grid = next.grid, *block = next.block, *shared = next.shared, *stream = next.stream;
    return 0;
}
HERE int __cudaGetKernel(const void **kernel, const void *function) {
    *kernel = function;
    return 0;
}

static int launched(const void *function) {
    const char *name = "?";
    for (int at = 0; at < count && recording; at++)
        if (known[at].function == function) name = known[at].name;
    dry_note("kernel %s", name);
    return 0;
}

/* The one kernel whose numbers decide sizes on the host, `RemovePadding`'s, is computed: as if all
 * texts were full, for what their lengths were counted with has not run. */
static void offsets(void **arguments) {
    int *total = *(int **)arguments[0], *offset = *(int **)arguments[1];
    int *starts = *(int **)arguments[2];
    int texts = *(int *)arguments[4], length = *(int *)arguments[5];
    total[0] = texts * length, total[1] = length;
    for (int at = 0; at < texts * length; at++) offset[at] = at;
    for (int at = 0; at <= texts; at++) starts[at] = at * length;
}

HERE int __cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments) {
    if (kernel == token_offset) offsets(arguments);
    return launched(kernel);
}
HERE int cudaLaunchKernel(const void *kernel) { return launched(kernel); }
HERE int cudaLaunchCooperativeKernel(const void *kernel) { return launched(kernel); }
HERE int cudaLaunchKernelExC(const void *settings, const void *kernel) { return launched(kernel); }
HERE int cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->binaryVersion = found->ptxVersion = 90;
    return 0;
}
HERE int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) {
    *blocks = 2;
    return 0;
}
HERE int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks) { *blocks = 2; return 0; }
HERE int cudaOccupancyMaxPotentialBlockSize(int *grid, int *block) {
    *grid = 132, *block = 256;
    return 0;
}

/* --- the device: an H200's numbers --------------------------------------------------------- */

HERE int cudaGetDeviceCount(int *devices) { *devices = 1; return 0; }
HERE int cudaGetDevice(int *device) { *device = 0; return 0; }
HERE int cudaDeviceCanAccessPeer(int *answer) { *answer = 0; return 0; }
HERE int cudaDeviceGetStreamPriorityRange(int *least, int *most) {
    *least = 0, *most = -5;
    return 0;
}
HERE int cudaDeviceGetPCIBusId(char *name, int room) {
    snprintf(name, room, "0000:01:00.0");
    return 0;
}
HERE int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
HERE int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
HERE int cudaDeviceGetAttribute(int *value, int attribute) {
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: *value = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
    default: *value = 1;
    }
    return 0;
}
HERE int cudaGetDeviceProperties(struct cudaDeviceProp *found) {
    memset(found, 0, sizeof *found);
    strcpy(found->name, "no GPU");
    found->major = 9;
    found->totalGlobalMem = (size_t)8 << 30;
    found->multiProcessorCount = 132;
    found->warpSize = 32;
    found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
    found->maxThreadsDim[2] = 64;
    found->maxThreadsPerMultiProcessor = 2048;
    found->maxGridSize[0] = 2147483647;
    found->maxGridSize[1] = found->maxGridSize[2] = 65535;
    found->regsPerBlock = found->regsPerMultiprocessor = 65536;
    found->sharedMemPerBlock = 49152;
    found->sharedMemPerBlockOptin = 232448;
    found->sharedMemPerMultiprocessor = 233472;
    found->l2CacheSize = 62914560;
    return 0;
}

/* --- memory, zeroed: what no kernel writes is at least the same each time ------------------- */

static int given(void **place, size_t size) {
    size = (size + 511) / 256 * 256;
    *place = memset(aligned_alloc(256, size), 0, size);
    return 0;
}

HERE int cudaMalloc(void **place, size_t size) { return given(place, size); }
HERE int cudaMallocHost(void **place, size_t size) { return given(place, size); }
HERE int cudaHostAlloc(void **place, size_t size) { return given(place, size); }
HERE int cudaMallocFromPoolAsync(void **place, size_t size) { return given(place, size); }
HERE int cudaFree(void *place) { free(place); return 0; }
HERE int cudaFreeHost(void *place) { free(place); return 0; }
HERE int cudaFreeAsync(void *place) { free(place); return 0; }
HERE int cudaMemGetInfo(size_t *unused, size_t *all) {
    *unused = (size_t)7 << 30, *all = (size_t)8 << 30;
    return 0;
}
HERE int cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *place) {
    memset(found, 0, sizeof *found);
    found->type = cudaMemoryTypeDevice;
    found->devicePointer = (void *)place;
    return 0;
}

static int copied(void *to, const void *from, size_t size, int kind) {
    static const char *const kinds[] = {"on-the-host", "to", "back", "inside", "anywhere"};
    dry_note("copy %s %zu", kinds[kind], size);
    memmove(to, from, size);
    return 0;
}

HERE int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    return copied(to, from, size, kind);
}
HERE int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind) {
    return copied(to, from, size, kind);
}
HERE int cudaMemcpyPeerAsync(void *to, int device, const void *from, int other, size_t size) {
    return copied(to, from, size, cudaMemcpyDeviceToDevice);
}
HERE int cudaHostGetDevicePointer(void **place, void *host) { *place = host; return 0; }
HERE int cudaMemset(void *to, int value, size_t size) { memset(to, value, size); return 0; }
HERE int cudaMemsetAsync(void *to, int value, size_t size) { memset(to, value, size); return 0; }

/* --- streams, events, graphs ---------------------------------------------------------------- */

static int capturing;

static int made(void **thing) { *thing = calloc(1, 4096); return 0; }

HERE int cudaStreamCreate(void **stream) { return made(stream); }
HERE int cudaStreamCreateWithFlags(void **stream) { return made(stream); }
HERE int cudaStreamCreateWithPriority(void **stream) { return made(stream); }
HERE int cudaStreamGetPriority(void *stream, int *priority) { *priority = 0; return 0; }
HERE int cudaEventCreate(void **event) { return made(event); }
HERE int cudaEventCreateWithFlags(void **event) { return made(event); }
HERE int cudaMemPoolCreate(void **pool) { return made(pool); }
HERE int cudaLibraryLoadData(void **library) { return made(library); }
HERE int cudaLibraryGetKernel(void **kernel) { return made(kernel); }
HERE int cudaGraphInstantiate(void **executable) { return made(executable); }
HERE int cudaGraphInstantiateWithFlags(void **executable) { return made(executable); }
HERE int cudaGraphGetNodes(void *graph, void **nodes, size_t *count) { *count = 1; return 0; }
HERE int cudaDeviceGetDefaultMemPool(void **pool) { return made(pool); }
HERE int cudaGetSymbolAddress(void **place) { return made(place); }
HERE int cudaEventElapsedTime(float *milliseconds) { *milliseconds = 1; return 0; }
HERE int cudaStreamSynchronize(void *stream) { dry_note("wait"); return 0; }
HERE int cudaEventSynchronize(void *event) { dry_note("wait"); return 0; }
HERE int cudaDeviceSynchronize(void) { dry_note("wait"); return 0; }
HERE int cudaStreamIsCapturing(void *stream, int *answer) { *answer = capturing; return 0; }
HERE int cudaStreamBeginCapture(void *stream) {
    capturing = 1;
    dry_note("capture");
    return 0;
}
HERE int cudaStreamEndCapture(void *stream, void **graph) {
    capturing = 0;
    return made(graph);
}
HERE int cudaStreamGetCaptureInfo(void *stream, int *state, unsigned long long *number) {
    *state = capturing;
    if (number) *number = 1;
    return 0;
}
HERE int cudaGraphLaunch(void *executable) { dry_note("replay"); return 0; }

static int nothing(void) { return 0; }

HERE int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                          unsigned long long flags, int *state) {
    *function = dlsym(RTLD_DEFAULT, name);
    if (!*function) *function = nothing;
    if (state) *state = 0;
    return 0;
}
HERE const char *cudaGetErrorName(int error) { return "an error"; }
HERE const char *cudaGetErrorString(int error) { return "an error"; }
