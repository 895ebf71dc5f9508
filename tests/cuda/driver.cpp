// A stand-in for NVIDIA's driver library, over the emulated device: what `Cuda` calls, under the names and with the
// refusals of the real one. It is stricter where that one is silent: a call without a current context, a copy outside
// of an allocation, a launch with more shared memory than was asked for, all are refused. Bytes are uploaded as late as
// may be: when something needs them, or waits; and downloaded ones arrive, as they were, when somebody waits for them.
//
// STAND_IN in the environment makes it another machine, in words between spaces: `version=12040`, `devices=0`,
// `capability=75`, `memory=BYTES`, and `fail=NAME:N:CODE`, by which the N-th call of a function returns an error. As on
// a device, an error of 700 and above is what every later call returns as well, until 900.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

struct Machine;
extern "C" {
Machine* emu_new();
void emu_delete(Machine*);
void emu_configure(Machine*, uint32_t order, uint64_t seed, bool checked, bool lines);
uint64_t emu_allocate(Machine*, size_t bytes);
const char* emu_release(Machine*, uint64_t address);
char* emu_host(Machine*, uint64_t address, size_t bytes);
const size_t* emu_parameters(const char* name, size_t* count);
const char* emu_launch(Machine*, const char* name, const uint32_t* grid, const uint32_t* block, uint32_t shared,
                       void** arguments, const size_t* sizes, size_t count);
void emu_tensor_map(void* out, uint64_t address, uint32_t rank, const uint64_t* sizes, const uint64_t* strides,
                    const uint32_t* box, uint32_t element, uint32_t swizzle);
}

namespace {

enum : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
};

std::string setting(const char* name, const char* otherwise) {
    const char* all = getenv("STAND_IN");
    const std::string text = std::string(" ") + (all ? all : "") + " ", key = std::string(" ") + name + "=";
    const size_t at = text.find(key);
    if (at == std::string::npos) return otherwise;
    return text.substr(at + key.size(), text.find(' ', at + 1) - at - key.size());
}

struct Function {
    std::string name;
    std::vector<size_t> sizes;
    uint32_t shared = 48 << 10;
};
struct Module {
    std::string code;  // what of the image is for this device
    std::map<std::string, Function*> functions;
};
struct Launch {  // or a copy, without a function
    Function* function;
    uint32_t grid[3], block[3], shared;
    std::vector<std::string> arguments;
    uint64_t to = 0;
    const void* from = nullptr;
    size_t bytes = 0;
};
using Graph = std::vector<Launch>;
struct Download {
    void* to;
    std::string bytes;
};
struct Event {
    std::chrono::steady_clock::time_point time;
    size_t downloads = 0;  // before it, of all that there were
};

struct Driver {
    Machine* machine = nullptr;
    bool initialised = false;
    int sticky = 0;
    std::map<std::string, int> calls;
    std::map<uint64_t, size_t> allocations;
    size_t used = 0, memory = std::stoull(setting("memory", "1073741824"));
    int capability = std::stoi(setting("capability", "90"));
    int others = 0;  // streams, events, pinned memory, modules, graphs that are not given back yet
    Graph* capturing = nullptr;
    Graph uploads;  // that are still to be done
    std::vector<Download> downloads;  // that have not arrived
    size_t arrived = 0;
} driver;
thread_local bool current = false;

// What a call answers before it does anything.
int refusal(const char* name) {
    const int call = ++driver.calls[name];
    if (driver.sticky) return driver.sticky;
    const std::string fail = setting("fail", "");
    const size_t colon = fail.find(':');
    if (colon != std::string::npos && fail.substr(0, colon) == name) {
        int number = 0, code = 0;
        sscanf(fail.c_str() + colon, ":%d:%d", &number, &code);
        if (call == number) {
            if (code >= 700 && code < 900) driver.sticky = code;
            return code;
        }
    }
    return SUCCESS;
}
#define CALL \
    if (const int refused = refusal(__func__)) return refused
#define CALL_IN_CONTEXT                     \
    if (!current) return INVALID_CONTEXT; \
    CALL

int run(const Launch& launch) {
    if (!launch.function) return memcpy(emu_host(driver.machine, launch.to, launch.bytes), launch.from, launch.bytes), SUCCESS;
    std::vector<void*> pointers;
    for (const std::string& argument : launch.arguments) pointers.push_back(const_cast<char*>(argument.data()));
    const Function& function = *launch.function;
    const char* report = emu_launch(driver.machine, function.name.c_str(), launch.grid, launch.block, launch.shared,
                                    pointers.data(), function.sizes.data(), function.sizes.size());
    if (!report) return SUCCESS;
    fprintf(stderr, "stand-in driver: %s\n", report);
    return driver.sticky = LAUNCH_FAILED;
}

int catch_up() {
    Graph uploads;
    uploads.swap(driver.uploads);
    for (const Launch& upload : uploads) run(upload);
    return SUCCESS;
}

// Lets so many of all downloads arrive.
int arrive(size_t until) {
    if (driver.sticky) return driver.sticky;
    const size_t count = until > driver.arrived ? until - driver.arrived : 0;
    for (size_t i = 0; i < count; i++) memcpy(driver.downloads[i].to, driver.downloads[i].bytes.data(), driver.downloads[i].bytes.size());
    driver.downloads.erase(driver.downloads.begin(), driver.downloads.begin() + long(count));
    driver.arrived += count;
    return SUCCESS;
}

// The part of a fatbin that this device can run, as it lies in the image.
std::string code_for(const char* image, int capability) {
    uint16_t header;
    uint64_t size;
    memcpy(&header, image + 6, 2), memcpy(&size, image + 8, 8);
    const char* end = image + header + size;
    for (const char* entry = image + header; entry < end;) {
        uint32_t skip, architecture;
        memcpy(&skip, entry + 4, 4), memcpy(&size, entry + 8, 8), memcpy(&architecture, entry + 28, 4);
        if (int(architecture) / 10 == capability / 10 && int(architecture) <= capability) {
            return std::string(entry + skip, size);
        }
        entry += skip + size;
    }
    return "";
}

}  // namespace

extern "C" {

int cuDriverGetVersion(int* version) { return *version = std::stoi(setting("version", "13000")), SUCCESS; }
int cuInit(unsigned) {
    CALL;
    driver.initialised = true;
    return setting("devices", "1") == "0" ? NO_DEVICE : SUCCESS;
}
int cuDeviceGetCount(int* count) {
    CALL;
    return *count = std::stoi(setting("devices", "1")), SUCCESS;
}
int cuDeviceGet(int* device, int ordinal) {
    CALL;
    return *device = ordinal, ordinal < std::stoi(setting("devices", "1")) ? SUCCESS : INVALID_DEVICE;
}
int cuDeviceGetName(char* name, int length, int) {
    CALL;
    return snprintf(name, size_t(length), "Stand-in"), SUCCESS;
}
int cuDeviceTotalMem_v2(size_t* bytes, int) {
    CALL;
    return *bytes = driver.memory, SUCCESS;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
    CALL;
    switch (attribute) {
        case 16: return *value = 4, SUCCESS;        // multiprocessors
        case 75: return *value = driver.capability / 10, SUCCESS;
        case 76: return *value = driver.capability % 10, SUCCESS;
        case 97: return *value = 232448, SUCCESS;   // shared memory of a block that asks
        default: return INVALID_VALUE;
    }
}

int cuDevicePrimaryCtxRetain(void** context, int) {
    CALL;
    driver.machine = emu_new();
    emu_configure(driver.machine, 0, 0, false, false);
    return *context = &driver, SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) {
    if (!driver.sticky && (!driver.allocations.empty() || driver.others)) {
        fprintf(stderr, "stand-in driver: %zu allocations and %d other things are not given back\n",
                driver.allocations.size(), driver.others);
    }
    emu_delete(driver.machine);
    return SUCCESS;
}
int cuCtxSetCurrent(void* context) { return current = context != nullptr, SUCCESS; }

int cuStreamCreate(void** stream, unsigned flags) {
    CALL_IN_CONTEXT;
    driver.others++;
    return *stream = &driver, flags == 1 ? SUCCESS : INVALID_VALUE;
}
int cuStreamDestroy_v2(void*) { return driver.others--, SUCCESS; }
int cuStreamSynchronize(void*) {
    CALL_IN_CONTEXT;
    if (driver.capturing) return CAPTURE_UNSUPPORTED;
    catch_up();
    return arrive(driver.arrived + driver.downloads.size());
}
int cuEventCreate(void** event, unsigned) {
    CALL_IN_CONTEXT;
    driver.others++;
    return *event = new Event, SUCCESS;
}
int cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), driver.others--, SUCCESS; }
int cuEventRecord(void* event, void*) {
    CALL_IN_CONTEXT;
    *static_cast<Event*>(event) = {std::chrono::steady_clock::now(), driver.arrived + driver.downloads.size()};
    return SUCCESS;
}
int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    CALL_IN_CONTEXT;
    const std::chrono::duration<float, std::milli> passed = static_cast<Event*>(end)->time - static_cast<Event*>(start)->time;
    return *milliseconds = passed.count(), SUCCESS;
}
int cuEventSynchronize(void* event) {
    CALL_IN_CONTEXT;
    catch_up();
    return arrive(static_cast<Event*>(event)->downloads);
}

int cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    CALL_IN_CONTEXT;
    driver.others++;
    return *memory = malloc(bytes), SUCCESS;
}
int cuMemFreeHost(void* memory) { return free(memory), driver.others--, SUCCESS; }
int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    CALL_IN_CONTEXT;
    if (bytes > driver.memory - driver.used) return OUT_OF_MEMORY;
    *address = emu_allocate(driver.machine, bytes);
    driver.allocations[*address] = bytes, driver.used += bytes;
    return *address ? SUCCESS : OUT_OF_MEMORY;
}
int cuMemFree_v2(uint64_t address) {
    CALL_IN_CONTEXT;
    if (!driver.allocations.count(address)) return INVALID_VALUE;
    catch_up();
    driver.used -= driver.allocations[address];
    driver.allocations.erase(address);
    return emu_release(driver.machine, address) ? INVALID_VALUE : SUCCESS;
}
int cuMemGetInfo_v2(size_t* free, size_t* total) {
    CALL_IN_CONTEXT;
    return *free = driver.memory - driver.used, *total = driver.memory, SUCCESS;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void*) {
    CALL_IN_CONTEXT;
    char* target = emu_host(driver.machine, to, bytes);
    if (!target) return INVALID_VALUE;
    Graph& list = driver.capturing ? *driver.capturing : driver.uploads;
    return list.push_back({nullptr, {}, {}, 0, {}, to, from, bytes}), SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void*) {
    CALL_IN_CONTEXT;
    if (driver.capturing) return CAPTURE_UNSUPPORTED;
    catch_up();
    const char* source = emu_host(driver.machine, from, bytes);
    if (!source) return INVALID_VALUE;
    return driver.downloads.push_back({to, std::string(source, bytes)}), SUCCESS;
}

int cuModuleLoadData(void** module, const void* image) {
    CALL_IN_CONTEXT;
    std::string code = code_for(static_cast<const char*>(image), driver.capability);
    if (code.empty()) return NO_BINARY_FOR_GPU;
    driver.others++;
    return *module = new Module{std::move(code), {}}, SUCCESS;
}
int cuModuleUnload(void* module) {
    delete static_cast<Module*>(module);
    return driver.others--, SUCCESS;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
    CALL_IN_CONTEXT;
    // The compiled code knows its kernels' names as symbols.
    Module& in = *static_cast<Module*>(module);
    if (in.code.find(std::string("\0", 1) + name + std::string("\0", 1)) == std::string::npos) return NOT_FOUND;
    size_t count = 0;
    const size_t* sizes = emu_parameters(name, &count);
    if (!sizes) return NOT_FOUND;
    return *function = new Function{name, {sizes, sizes + count}}, SUCCESS;
}
int cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* size) {
    const Function& kernel = *static_cast<Function*>(function);
    if (index >= kernel.sizes.size()) return INVALID_VALUE;
    return *offset = 0, *size = kernel.sizes[index], SUCCESS;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
    CALL_IN_CONTEXT;
    if (attribute != 8) return INVALID_VALUE;
    return static_cast<Function*>(function)->shared = uint32_t(value), SUCCESS;
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void*, void** arguments, void**) {
    CALL_IN_CONTEXT;
    Function& kernel = *static_cast<Function*>(function);
    if (shared > kernel.shared || !gx || !gy || !gz || bx * by * bz > 1024) return INVALID_VALUE;
    Launch launch{&kernel, {gx, gy, gz}, {bx, by, bz}, shared, {}, 0, nullptr, 0};
    for (size_t i = 0; i < kernel.sizes.size(); i++) {
        launch.arguments.emplace_back(static_cast<char*>(arguments[i]), kernel.sizes[i]);
    }
    if (driver.capturing) return driver.capturing->push_back(std::move(launch)), SUCCESS;
    catch_up();
    return run(launch);
}

int cuStreamBeginCapture_v2(void*, int) {
    CALL_IN_CONTEXT;
    driver.others++;
    return driver.capturing = new Graph, SUCCESS;
}
int cuStreamEndCapture(void*, void** graph) {
    CALL_IN_CONTEXT;
    *graph = driver.capturing;
    return driver.capturing = nullptr, SUCCESS;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    CALL_IN_CONTEXT;
    driver.others++;
    return *executable = new Graph(*static_cast<Graph*>(graph)), SUCCESS;
}
int cuGraphDestroy(void* graph) { return delete static_cast<Graph*>(graph), driver.others--, SUCCESS; }
int cuGraphExecDestroy(void* graph) { return delete static_cast<Graph*>(graph), driver.others--, SUCCESS; }
int cuGraphLaunch(void* executable, void*) {
    CALL_IN_CONTEXT;
    catch_up();
    for (const Launch& launch : *static_cast<Graph*>(executable)) {
        if (const int failed = run(launch)) return failed;
    }
    return SUCCESS;
}

int cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* address, const uint64_t* sizes,
                           const uint64_t* strides, const uint32_t* box, const uint32_t* steps, int, int swizzle, int,
                           int) {
    CALL_IN_CONTEXT;
    const uint32_t elements[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2}, spans[] = {0, 32, 64, 128};
    if (type < 0 || type > 9 || swizzle < 0 || swizzle > 3) return INVALID_VALUE;
    if (std::any_of(steps, steps + rank, [](uint32_t step) { return step != 1; })) return INVALID_VALUE;
    if (reinterpret_cast<uintptr_t>(map) % 64) return INVALID_VALUE;
    emu_tensor_map(map, reinterpret_cast<uint64_t>(address), rank, sizes, strides, box, elements[type], spans[swizzle]);
    return SUCCESS;
}

}  // extern "C"
