// Threads are run in turns: each until it has to wait for others, or ends. In what order is the environment's
// to say (NIBBLE_SIMULATED_ORDER, "forward" or "backward"): a kernel whose result depends on it has a race.
#include <alloca.h>
#include <cuda_runtime.h>

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cfenv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

namespace simulated_gpu {

void run(dim3 grid, dim3 block, size_t shared, void (*body)(void*), void* of_body);
void* dynamic_shared();

// NIBBLE_SIMULATED_GPU=ada: a GPU of that kind, in what tests need of it.
bool is_ada() {
    const char* const kind = std::getenv("NIBBLE_SIMULATED_GPU");
    return kind != nullptr && std::string_view(kind) == "ada";
}

namespace {

constexpr unsigned kMostThreads = 1024, kWarp = 32;
constexpr size_t kStack = 256 << 10;  // bytes
// Of a thread block.
size_t most_shared() { return size_t{is_ada() ? 99u : 227u} << 10; }

[[noreturn]] void stop(std::string_view what) {
    std::fprintf(stderr, "simulated GPU: %.*s (block %u %u %u)\n", static_cast<int>(what.size()), what.data(),
                 blockIdx.x, blockIdx.y, blockIdx.z);
    std::abort();
}

struct Warp {
    Lanes lanes[2];  // of the call before, and of this one
    unsigned calls = 0;
    unsigned arrived = 0, living = 0;
    const char* call = nullptr;  // that those who arrived make
};

using boost::context::fiber;

enum class State { not_begun, ready, waits_for_warp, waits_for_block, ended };

struct Thread {
    State state = State::ended;
    dim3 index;
    fiber parked;  // where it goes on, if it is ready or waits
};

class Multiprocessor {
  public:
    static Multiprocessor& get() {
        static Multiprocessor* const one = new Multiprocessor;  // its fibers never return
        return *one;
    }

    void run(dim3 grid, dim3 block, size_t shared, void (*body)(void*), void* of_body) {
        const std::lock_guard lock(mutex_);
        count_ = block.x * block.y * block.z;
        if (count_ == 0 || count_ > kMostThreads) stop("a block has 1 to 1,024 threads");
        if (shared > most_shared()) stop("more shared memory than a multiprocessor has");
        body_ = body;
        of_body_ = of_body;
        gridDim = grid;
        blockDim = block;
        for (unsigned z = 0; z < grid.z; ++z)
            for (unsigned y = 0; y < grid.y; ++y)
                for (unsigned x = 0; x < grid.x; ++x) {
                    blockIdx = {x, y, z};
                    std::memset(shared_.data(), 0xff, shared);  // NaN: what was not written is not to be read
                    run_block();
                }
    }

    void synchronize_block() {
        ++arrived_;
        if (!release_block()) wait(State::waits_for_block);
    }

    const Lanes& exchange(const char* call, uint64_t value) {
        Warp& warp = warps_[current_ / kWarp];
        Lanes& lanes = warp.lanes[warp.calls % 2];
        if (warp.arrived == 0) {
            lanes.living = 0;
            warp.call = call;
        } else if (warp.call != call && std::string_view(warp.call) != call) {
            stop("the lanes of a warp make different calls");
        }
        lanes.values[current_ % kWarp] = value;
        lanes.living |= 1u << current_ % kWarp;
        ++warp.arrived;
        if (!release_warp(current_ / kWarp)) wait(State::waits_for_warp);
        return lanes;
    }

    int lane() const { return static_cast<int>(current_ % kWarp); }
    void* dynamic_shared() { return shared_.data(); }

  private:
    struct alignas(16) Bytes16 {
        std::byte bytes[16];
    };

    Multiprocessor() : shared_(most_shared() / sizeof(Bytes16)), threads_(kMostThreads) {
        const char* const order = std::getenv("NIBBLE_SIMULATED_ORDER");
        is_backward_ = order != nullptr && std::string_view(order) == "backward";
        // Each thread may wait, and one fiber looks for the next.
        for (unsigned i = 0; i <= kMostThreads; ++i)
            idle_.emplace_back(std::allocator_arg, boost::context::protected_fixedsize_stack(kStack),
                               [this, i](fiber&& from) {
                                   *left_ = std::move(from);
                                   // Stacks that begin at one place of their pages fight for the cache.
                                   [[maybe_unused]] volatile void* const pad = alloca(i % 64 * 64 + 64);
                                   run_threads();
                                   return fiber();
                               });
    }

    void run_block() {
        living_ = count_;
        arrived_ = 0;
        next_ = 0;
        for (unsigned w = 0; w * kWarp < count_; ++w) {
            warps_[w].arrived = 0;
            warps_[w].living = std::min(kWarp, count_ - w * kWarp);
        }
        for (unsigned i = 0; i < count_; ++i) {
            threads_[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
            threads_[i].state = State::not_begun;
        }
        go_to_idle(outside_);
    }

    // Of a fiber, for ever: begins one thread after the other. Gives way when the next one has begun already.
    void run_threads() {
        for (;;) {
            while (find_next() && threads_[next_].state == State::not_begun) {
                make_current(next_);
                body_(of_body_);
                threads_[current_].state = State::ended;
                --living_;
                --warps_[current_ / kWarp].living;
                release_warp(current_ / kWarp);
                release_block();
            }
            fiber& next = living_ == 0 ? outside_ : threads_[next_].parked;
            if (living_ > 0 && threads_[next_].state != State::ready)
                stop("threads wait for others that do not come");
            idle_.emplace_back();
            go_to(next, idle_.back());
        }
    }

    // Of the current thread; returns when it goes on.
    void wait(State state) {
        const unsigned me = current_;
        threads_[me].state = state;
        if (find_next() && threads_[next_].state == State::ready) {
            go_to(threads_[next_].parked, threads_[me].parked);
        } else {
            go_to_idle(threads_[me].parked);
        }
        make_current(me);
    }

    // Leaves the fiber that runs, in `here`, for another; returns when somebody comes back.
    void go_to(fiber& next, fiber& here) {
        left_ = &here;
        fiber from = std::move(next).resume();
        *left_ = std::move(from);
    }
    void go_to_idle(fiber& here) {
        fiber next = std::move(idle_.back());
        idle_.pop_back();
        go_to(next, here);
    }

    // next_ <- the thread after next_, in turn, that can run. False if there is none.
    bool find_next() {
        for (unsigned i = 0; i < count_; ++i) {
            next_ = is_backward_ ? (next_ + count_ - 1) % count_ : (next_ + 1 == count_ ? 0 : next_ + 1);
            const State state = threads_[next_].state;
            if (state == State::ready || state == State::not_begun) return true;
        }
        return false;
    }

    void make_current(unsigned i) {
        current_ = i;
        threadIdx = threads_[i].index;
    }

    // Lets those go on who wait, if all who live have arrived.
    bool release_block() {
        if (arrived_ == 0 || arrived_ < living_) return false;
        arrived_ = 0;
        for (unsigned i = 0; i < count_; ++i)
            if (threads_[i].state == State::waits_for_block) threads_[i].state = State::ready;
        return true;
    }
    bool release_warp(unsigned w) {
        Warp& warp = warps_[w];
        if (warp.arrived == 0 || warp.arrived < warp.living) return false;
        warp.arrived = 0;
        ++warp.calls;
        for (unsigned i = w * kWarp; i < std::min(count_, (w + 1) * kWarp); ++i)
            if (threads_[i].state == State::waits_for_warp) threads_[i].state = State::ready;
        return true;
    }

    std::mutex mutex_;
    std::vector<Bytes16> shared_;
    std::vector<Thread> threads_;
    Warp warps_[kMostThreads / kWarp];
    bool is_backward_ = false;

    unsigned count_ = 0, living_ = 0, arrived_ = 0;
    unsigned current_ = 0, next_ = 0;
    void (*body_)(void*) = nullptr;
    void* of_body_ = nullptr;

    std::deque<fiber> idle_;
    fiber outside_;          // who asked for the block
    fiber* left_ = nullptr;  // where the fiber that is left will be found
};

}  // namespace

void run(dim3 grid, dim3 block, size_t shared, void (*body)(void*), void* of_body) {
    Multiprocessor::get().run(grid, block, shared, body, of_body);
}
const Lanes& exchange(const char* call, uint64_t value) {
    return Multiprocessor::get().exchange(call, value);
}
int lane() { return Multiprocessor::get().lane(); }
void* dynamic_shared() { return Multiprocessor::get().dynamic_shared(); }

}  // namespace simulated_gpu

void __syncthreads() { simulated_gpu::Multiprocessor::get().synchronize_block(); }

namespace {

template <typename Operation>
float rounded_up(Operation operation) {
    const int before = std::fegetround();
    std::fesetround(FE_UPWARD);
    const volatile float result = operation();
    std::fesetround(before);
    return result;
}

}  // namespace

// Compiled with -frounding-math.
float __fmaf_ru(float a, float b, float c) {
    volatile float of_a = a, of_b = b, of_c = c;
    return rounded_up([&] { return std::fma(of_a, of_b, of_c); });
}
float __fadd_ru(float a, float b) {
    volatile float of_a = a, of_b = b;
    return rounded_up([&] { return of_a + of_b; });
}

// ---- the runtime: one GPU like an H100, with little of everything ----

namespace {

constexpr size_t kMemory = size_t{8} << 30;

std::unique_ptr<simulated_gpu::Recording> recording_under_way;

// Of what waits for the GPU, or is not queued on a stream.
void refuse_in_recording() {
    if (recording_under_way) simulated_gpu::stop("a call that cannot be recorded, in work that is");
}

std::mutex memory_mutex;
std::map<void*, size_t> allocated;  // bytes
size_t in_use = 0;

cudaError_t allocate(void** to, size_t bytes) {
    const std::lock_guard lock(memory_mutex);
    if (bytes > kMemory - in_use) return cudaErrorMemoryAllocation;
    const size_t size = (std::max<size_t>(bytes, 1) + 255) / 256 * 256;
    *to = std::aligned_alloc(256, size);
    if (*to == nullptr) return cudaErrorMemoryAllocation;
    allocated[*to] = bytes;
    in_use += bytes;
    return cudaSuccess;
}
cudaError_t give_back(void* p) {
    const std::lock_guard lock(memory_mutex);
    if (const auto found = allocated.find(p); found != allocated.end()) {
        in_use -= found->second;
        allocated.erase(found);
    }
    std::free(p);
    return cudaSuccess;
}

}  // namespace

void simulated_gpu::queue(Work work) {
    if (recording_under_way) {
        recording_under_way->work.push_back(std::move(work));
    } else {
        work();
    }
}

bool simulated_gpu::is_recording() { return recording_under_way != nullptr; }
simulated_gpu::Recording simulated_gpu::record(const Work& work) {
    auto outer = std::exchange(recording_under_way, std::make_unique<Recording>());
    work();
    return std::move(*std::exchange(recording_under_way, std::move(outer)));
}
void simulated_gpu::replay(const Recording& recording) {
    for (const Work& work : recording.work) work();
}

const char* cudaGetErrorString(cudaError_t status) {
    return status == cudaErrorMemoryAllocation ? "out of memory" : "no error";
}
const char* cudaGetErrorName(cudaError_t status) {
    return status == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaSuccess";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    *properties = {"simulated GPU", kMemory, 9, 0, 4};
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount:
            *value = 4;
            break;
        case cudaDevAttrComputeCapabilityMajor:
            *value = 9;
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *value = 0;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = static_cast<int>(simulated_gpu::most_shared());
            break;
        case cudaDevAttrL2CacheSize:
            *value = 1 << 20;
            break;
    }
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
    const std::lock_guard lock(memory_mutex);
    *available = kMemory - in_use;
    *total = kMemory;
    return cudaSuccess;
}
cudaError_t cudaMalloc(void** to, size_t bytes) {
    refuse_in_recording();
    return allocate(to, bytes);
}
cudaError_t cudaFree(void* p) {
    refuse_in_recording();
    return give_back(p);
}
cudaError_t cudaHostAlloc(void** to, size_t bytes, unsigned) {
    *to = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    return *to == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
    std::free(p);
    return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
    refuse_in_recording();
    std::memset(to, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
    simulated_gpu::queue([=] { std::memset(to, value, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    refuse_in_recording();
    std::memmove(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    simulated_gpu::queue([=] { std::memmove(to, from, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t) {
    simulated_gpu::queue([=] {
        for (size_t row = 0; row < height; ++row)
            std::memmove(static_cast<std::byte*>(to) + row * to_pitch,
                         static_cast<const std::byte*>(from) + row * from_pitch, width);
    });
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    refuse_in_recording();
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    static std::byte all;  // are one
    *stream = reinterpret_cast<cudaStream_t>(&all);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

// ---- recordings ----

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    recording_under_way = std::make_unique<simulated_gpu::Recording>();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    *graph = recording_under_way.release();
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned) {
    *made = new simulated_gpu::Recording(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
    simulated_gpu::replay(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return cudaGraphDestroy(graph); }
