// Kernels for the quantisers in which training spends its time: each is compiled for one spec, so that
// nothing else is left in it.
#include <array>
#include <utility>

#include "quant/kernel_stream.cuh"
#include "quant/quantize_kernel.cuh"

namespace nibble::cuda {

namespace {

constexpr KernelSpec kNvfp4 = {.format = Format::nvfp4,
                               .element = Element::e2m1,
                               .scale = ScaleRule::amax,
                               .round = Rounding::nearest,
                               .correct = Correction::none,
                               .scale_round = ScaleRounding::nearest,
                               .tensor = TensorScale::current,
                               .block_cols = 16,
                               .block_rows = 1,
                               .is_row = false,
                               .outer = false,
                               .out_bf16 = false,
                               .mask = false,
                               .emulation = false,
                               .rotation = 0,
                               .rounds = 0};
constexpr KernelSpec kMxfp4 = [] {
    KernelSpec s = kNvfp4;
    s.format = Format::mxfp4;
    s.scale = ScaleRule::three_quarters;
    s.block_cols = 32;
    return s;
}();

// One scale for the tensor.
constexpr KernelSpec fp8(Element element) {
    KernelSpec s = kNvfp4;
    s.format = Format::fp8;
    s.element = element;
    return s;
}

constexpr KernelSpec rotated(KernelSpec s, int size) {
    s.rotation = size;
    s.rounds = 1;
    return s;
}
constexpr KernelSpec stochastic(KernelSpec s) {
    s.round = Rounding::stochastic;
    return s;
}

constexpr std::array kHot = {
    kNvfp4,
    stochastic(kNvfp4),
    rotated(kNvfp4, 16),
    rotated(stochastic(kNvfp4), 16),
    [] {  // scale=four-six:mse
        KernelSpec s = kNvfp4;
        s.scale = ScaleRule::four_six_mse;
        return s;
    }(),
    [] {  // scale=eden rotate=rht:128
        KernelSpec s = rotated(kNvfp4, 128);
        s.correct = Correction::eden;
        s.scale_round = ScaleRounding::stochastic;
        return s;
    }(),
    rotated(kMxfp4, 32),
    [] {  // scale=quest:std rotate=hadamard:32 mask=clip
        KernelSpec s = rotated(kMxfp4, 32);
        s.scale = ScaleRule::quest_std;
        s.mask = true;
        return s;
    }(),
    fp8(Element::e4m3),
    fp8(Element::e5m2),
};

// The amax after rotation by blocks of this size; 0: as it is.
template <int kRotation, typename Stream>
__global__ void __launch_bounds__(kStreamThreads) amax_stream_kernel(const __grid_constant__ Job job) {
    __shared__ uint4 shared[Stream::kShared / sizeof(uint4) + 1];
    const Tiles<Stream::kTransposed, Stream::kRows> tiles(job);
    Stream stream(job, shared, tiles.first_row, tiles.first_col);
    stream.fetch();
    uint32_t largest = 0;
    for (int step = 0; step < tiles.count; ++step) {
        stream.settle();
        if (step + 1 < tiles.count) stream.fetch();
#pragma unroll 1
        for (int part = 0; part < Stream::kParts; ++part) {
            Group g;
            stream.read(part, g);
            g.row += tiles.row(step);
            g.col += tiles.first_col;
            if constexpr (kRotation != 0) butterfly(kRotation, g);
            largest = max(largest, bits_of_largest(g.x));
        }
    }
    // Rounding keeps the order: the largest product is that of the largest.
    if constexpr (kRotation != 0) largest = __float_as_uint(__uint_as_float(largest) * job.amax_factor);
    give_amax(&job.scalars->amax, largest);
}

// One read for both orientations of x, a square of 128 x 128 for each thread block: along the rows from
// registers, along the columns through shared memory.
constexpr int kSquare = 128;

template <int kRotation>
__device__ __forceinline__ uint32_t amax_of_group(Group& g) {
    if constexpr (kRotation != 0) butterfly(kRotation, g);
    return bits_of_largest(g.x);
}
template <int kRotation>
__device__ __forceinline__ void give_rotated_amax(const Job& job, float* amax, uint32_t largest) {
    // Rounding keeps the order: the largest product is that of the largest.
    const float rotated = __uint_as_float(largest) * (kRotation != 0 ? job.amax_factor : 1.0f);
    give_amax(reinterpret_cast<uint32_t*>(amax), __float_as_uint(rotated));
}

template <int kOfRows, int kOfColumns>
__global__ void __launch_bounds__(kStreamThreads)
    both_amaxes_kernel(const __grid_constant__ Job rows, const __grid_constant__ Job columns, float* amaxes) {
    constexpr int kParts = kSquare / kRowsOfPart;
    alignas(16) __shared__ uint16_t tile[kSquare * kSquare];
    // Pieces of 8 elements are interchanged within a line: a group's 16 lines alike.
    const auto at = [](int line, int col) { return line * kSquare + (col ^ line / kGroup % 8 * 8); };
    const int64_t across = divide_up<int64_t>(rows.cols, kSquare);
    const int64_t first_row = blockIdx.x / across * kSquare, first_col = blockIdx.x % across * kSquare;
    const int line = static_cast<int>(threadIdx.x) / kGroups,
              col = static_cast<int>(threadIdx.x) % kGroups * kGroup;
    PlainPiece::Source source(rows, first_row + line, first_col + col);
    const int there = count_from(first_col + col, rows.cols), lines = count_from(first_row + line, rows.rows);
    PlainPiece pieces[kParts];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
        pieces[part].load(source, lines > part * kRowsOfPart ? there : 0);
        source.advance(kRowsOfPart * rows.stride);
    }
    uint32_t of_rows = 0, of_columns = 0;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
        uint32_t words[kGroup / 2];
        pieces[part].words(words);
        const int l = part * kRowsOfPart + line;
        const uint32_t sign = kOfColumns != 0 ? sign_pair(columns, l) : 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            *reinterpret_cast<uint4*>(tile + at(l, col + 8 * half)) = {
                words[4 * half] ^ sign, words[4 * half + 1] ^ sign, words[4 * half + 2] ^ sign,
                words[4 * half + 3] ^ sign};
        }
        Group g;
#pragma unroll
        for (int i = 0; i < kGroup / 2; ++i) unpack(words[i], g.x[2 * i], g.x[2 * i + 1]);
        if constexpr (kOfRows != 0) {
            g.col = col;
            apply_signs(rows.spec, rows, 0, g);
        }
        of_rows = max(of_rows, amax_of_group<kOfRows>(g));
    }
    __syncthreads();
#pragma unroll 1
    for (int part = 0; part < kParts; ++part) {
        // `col` is now a place along the contraction: 16 lines of the tile.
        const uint16_t* const from = tile + at(col, part * kRowsOfPart + line);
        Group g;
#pragma unroll
        for (int i = 0; i < kGroup; ++i) g.x[i] = __uint_as_float(uint32_t{from[i * kSquare]} << 16);
        of_columns = max(of_columns, amax_of_group<kOfColumns>(g));
    }
    give_rotated_amax<kOfRows>(rows, amaxes, of_rows);
    __syncthreads();
    give_rotated_amax<kOfColumns>(columns, amaxes + 1, of_columns);
}

constexpr int blocks_of_multiprocessor(const KernelSpec& s) { return is_four_six(s.scale) ? 2 : 3; }

template <size_t kIndex, typename Stream>
__global__ void __launch_bounds__(kStreamThreads, blocks_of_multiprocessor(kHot[kIndex]))
    quantize_stream_kernel(const __grid_constant__ Job job) {
    constexpr KernelSpec s = kHot[kIndex];
    __shared__ uint4 shared[Stream::kShared / sizeof(uint4) + 1];
    __shared__ PerThread<kRowsOfPart> of_threads;
    __shared__ TensorValues tensor;
    const Tiles<Stream::kTransposed, Stream::kRows> tiles(job);
    Stream stream(job, shared, tiles.first_row, tiles.first_col);
    stream.fetch();
    tensor.prepare(s, job);
    uint32_t largest_value = 0;
    float largest_scale = 0.0f;
    ScaleCoins coins;
    for (int step = 0; step < tiles.count; ++step) {
        stream.settle();
        if (step + 1 < tiles.count) stream.fetch();
#pragma unroll 1
        for (int part = 0; part < Stream::kParts; ++part) {
            Group g;
            stream.read(part, g);
            g.row += tiles.row(step);
            g.col += tiles.first_col;
            if constexpr (s.rotation != 0) transform(s.rotation, job.factor, g);
            largest_value = max(largest_value, bits_of_largest(g.x));
            quantize_group(s, job, tensor, g, of_threads, coins, step * Stream::kParts + part, largest_scale);
        }
    }
    if (largest_value >= 0x7f800000u) *job.fault = 1;
}

// Launches one of the kernels for row, column and packed streams.
template <typename Stream>
void launch_stream(const Context& context, void (*kernel)(Job), Job job) {
    const dim3 blocks = divide_tiles(job, Stream::kRows);
    launch(context, kernel, blocks, dim3(kStreamThreads), 0, job);
}

template <bool kRotates, typename Body>
void with_stream(const Job& job, bool transposed, Body&& body) {
    if (!transposed) return body.template operator()<RowStream<kRotates>>();
    if (job.x != nullptr) return body.template operator()<ColumnStream<PlainPiece, kRotates>>();
    body.template operator()<ColumnStream<PackedPiece, kRotates>>();
}

size_t place_of(const Job& job) {
    return static_cast<size_t>(std::ranges::find(kHot, job.spec) - kHot.begin());
}

}  // namespace

bool has_hot_kernels(const Job& job) { return job.is_bf16 && place_of(job) < kHot.size(); }

void find_amax_hot(const Context& context, const Job& job, bool transposed) {
    const auto of = [&]<int kRotation>() {
        if (job.spec.rotation != kRotation) return;
        with_stream<kRotation != 0>(job, transposed, [&]<typename Stream>() {
            launch_stream<Stream>(context, amax_stream_kernel<kRotation, Stream>, job);
        });
    };
    of.template operator()<0>();
    of.template operator()<16>();
    of.template operator()<32>();
    of.template operator()<128>();
}

void quantize_hot(const Context& context, const Job& job, bool transposed) {
    const auto of = [&]<size_t kIndex>() {
        if (place_of(job) != kIndex) return;
        with_stream<kHot[kIndex].rotation != 0>(job, transposed, [&]<typename Stream>() {
            launch_stream<Stream>(context, quantize_stream_kernel<kIndex, Stream>, job);
        });
    };
    [&]<size_t... kIndex>(std::index_sequence<kIndex...>) { (of.template operator()<kIndex>(), ...); }
    (std::make_index_sequence<kHot.size()>());
}

// Rotations by one round of 16 or 128, or none.
bool has_both_kernel(const Job& rows, const Job& columns) {
    return std::ranges::all_of(std::array{&rows, &columns}, [](const Job* job) {
        const int size = job->spec.rotation;
        return size == 0 ||
               (job->spec.rounds == 1 && !job->spec.out_bf16 && (size == 16 || size == kTileCols));
    });
}

void find_both_amaxes_hot(const Context& context, const Job& rows, const Job& columns, float* amaxes) {
    const int64_t squares = divide_up<int64_t>(rows.rows, kSquare) * divide_up<int64_t>(rows.cols, kSquare);
    const auto of = [&]<int kOfRows, int kOfColumns>() {
        if (rows.spec.rotation != kOfRows || columns.spec.rotation != kOfColumns) return;
        launch(context, both_amaxes_kernel<kOfRows, kOfColumns>, dim3(static_cast<unsigned>(squares)),
               dim3(kStreamThreads), 0, rows, columns, amaxes);
    };
    const auto of_row_rotation = [&]<int kOfRows>() {
        of.template operator()<kOfRows, 0>();
        of.template operator()<kOfRows, 16>();
        of.template operator()<kOfRows, 128>();
    };
    of_row_rotation.template operator()<0>();
    of_row_rotation.template operator()<16>();
    of_row_rotation.template operator()<128>();
}

}  // namespace nibble::cuda
