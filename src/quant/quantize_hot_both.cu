// The fast kernels that read a gradient once for both of its orientations, along its rows and along its
// columns: squares of 128 x 128 in shared memory.
#include "quant/quantize_hot.cuh"

namespace nibble::cuda {

namespace {

using namespace hot;

constexpr int kSquare = 128;
constexpr int kPartsOfSquare = kSquare / kRowsOfPart;  // groups of a thread, along the rows or the columns

// A square of x, BF16. Lines have the signs of the columns' rotation; along the rows they are taken back.
template <bool kRowsRotate, bool kColumnsRotate>
class Square {
  public:
    struct Shared {
        alignas(16) uint16_t tile[kSquare * kSquare];
        alignas(16) uint32_t signs_of_rows[kSquare / 2];  // in pairs
        uint32_t signs_of_lines[kSquare];                 // at both halves
    };

    // Called by all threads.
    __device__ Square(const Job& rows, const Job& columns, Shared& shared)
        : rows_(rows), columns_(columns), shared_(shared) {
        const int i = static_cast<int>(threadIdx.x);
        if (kRowsRotate && i < kSquare / 2)
            shared.signs_of_rows[i] =
                (sign_pair(rows, 2 * i) & 0x8000u) | (sign_pair(rows, 2 * i + 1) & 0x80000000u);
        if (kColumnsRotate && i < kSquare) shared.signs_of_lines[i] = sign_pair(columns, i);
        __syncthreads();
    }
    // Called by all threads: reads the square that begins there.
    __device__ __forceinline__ void load(int64_t first_row, int64_t first_col) {
        PlainPiece::Source source(rows_, first_row + line(), first_col + col());
        const int there = count_from(first_col + col(), rows_.cols),
                  lines = count_from(first_row + line(), rows_.rows);
        PlainPiece pieces[kPartsOfSquare];
#pragma unroll
        for (int part = 0; part < kPartsOfSquare; ++part) {
            pieces[part].load(source, lines > part * kRowsOfPart ? there : 0);
            source.advance(kRowsOfPart * rows_.stride);
        }
        __syncthreads();  // all have read the square before
#pragma unroll
        for (int part = 0; part < kPartsOfSquare; ++part) {
            uint32_t words[kGroup / 2];
            pieces[part].words(words);
            const int l = part * kRowsOfPart + line();
            const uint32_t sign = kColumnsRotate ? shared_.signs_of_lines[l] : 0;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                *reinterpret_cast<uint4*>(shared_.tile + at(l, col() + 8 * half)) = {
                    words[4 * half] ^ sign, words[4 * half + 1] ^ sign, words[4 * half + 2] ^ sign,
                    words[4 * half + 3] ^ sign};
            }
        }
        __syncthreads();
    }
    // The part-th group of this thread along the rows, with their signs.
    __device__ __forceinline__ void read_row(int part, Group& g) const {
        const int l = part * kRowsOfPart + line();
        const uint32_t of_line = kColumnsRotate ? shared_.signs_of_lines[l] : 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint4 four = *reinterpret_cast<const uint4*>(shared_.tile + at(l, col() + 8 * half));
            uint4 signs = {};
            if constexpr (kRowsRotate)
                signs = *reinterpret_cast<const uint4*>(shared_.signs_of_rows + col() / 2 + 4 * half);
            float* const x = g.x + 8 * half;
            unpack(four.x ^ of_line ^ signs.x, x[0], x[1]);
            unpack(four.y ^ of_line ^ signs.y, x[2], x[3]);
            unpack(four.z ^ of_line ^ signs.z, x[4], x[5]);
            unpack(four.w ^ of_line ^ signs.w, x[6], x[7]);
        }
    }
    // Along the columns, with theirs: 16 lines.
    __device__ __forceinline__ void read_column(int part, Group& g) const {
        const uint16_t* const from = shared_.tile + at(col(), part * kRowsOfPart + line());
#pragma unroll
        for (int i = 0; i < kGroup; ++i) g.x[i] = number(from[i * kSquare]);
    }

    static __device__ int line() { return static_cast<int>(threadIdx.x) / kGroups; }
    static __device__ int col() { return static_cast<int>(threadIdx.x) % kGroups * kGroup; }

  private:
    // Pieces of 8 elements are interchanged within a line: a group's 16 lines alike.
    static __device__ int at(int line, int col) { return line * kSquare + (col ^ line / kGroup % 8 * 8); }

    const Job &rows_, &columns_;
    Shared& shared_;
};

// All that have a part of x, or of what an operand is padded with.
struct Squares {
    unsigned across, down;

    Squares(const Job& rows, const Job& columns) : across(along(rows)), down(along(columns)) {}

  private:
    static unsigned along(const Job& job) {
        return static_cast<unsigned>(divide_up<int64_t>(std::max(job.cols, job.padded_cols), kSquare));
    }
};

template <int kOfRows, int kOfColumns>
struct SharedOfAmaxes {
    typename Square<kOfRows != 0, kOfColumns != 0>::Shared square;
    uint4 far[std::max(kVectorsOfRotation<kOfRows>, kVectorsOfRotation<kOfColumns>)];
};

template <int kOfRows, int kOfColumns, int kRounds>
__global__ void __launch_bounds__(kStreamThreads)
    both_amaxes_kernel(const __grid_constant__ Job rows, const __grid_constant__ Job columns,
                       const __grid_constant__ Squares squares, float* amaxes) {
    auto& shared = *dynamic_shared<SharedOfAmaxes<kOfRows, kOfColumns>>();
    Square<kOfRows != 0, kOfColumns != 0> square(rows, columns, shared.square);
    square.load(int64_t{blockIdx.x / squares.across} * kSquare,
                int64_t{blockIdx.x % squares.across} * kSquare);
    uint32_t of_rows = 0, of_columns = 0;
#pragma unroll 1
    for (int part = 0; part < kPartsOfSquare; ++part) {
        Group g;
        square.read_row(part, g);
        of_rows = max(of_rows, amax_of_group<kOfRows, kRounds>(rows, g, shared.far));
    }
#pragma unroll 1
    for (int part = 0; part < kPartsOfSquare; ++part) {
        Group g;
        square.read_column(part, g);
        of_columns = max(of_columns, amax_of_group<kOfColumns, kRounds>(columns, g, shared.far));
    }
    give_rotated_amax<kOfRows>(rows, reinterpret_cast<uint32_t*>(amaxes), of_rows);
    __syncthreads();
    give_rotated_amax<kOfColumns>(columns, reinterpret_cast<uint32_t*>(amaxes + 1), of_columns);
}

// The host says how large it is: nothing in it may be laid out otherwise there, as empty members are with
// [[no_unique_address]].
template <typename OfRows, typename OfColumns, bool kOperandOnly>
struct SharedOfQuantisers {
    using Rows = Quantiser<OfRows, kOperandOnly>;
    using Columns = Quantiser<OfColumns, kOperandOnly>;
    using SquareOf = Square<OfRows::kSpec.rotation != 0, OfColumns::kSpec.rotation != 0>;

    typename SquareOf::Shared square;
    uint4 far[std::max(Rows::kVectorsOfFar, Columns::kVectorsOfFar)];
    typename Rows::Shared rows;
    typename Columns::Shared columns;
};

// A thread block has `steps` squares, one below the other. A stream along columns keeps lines ahead in
// registers, a square does not: those that are enough along the rows are enough.
template <typename OfRows, typename OfColumns, bool kOperandOnly>
__global__ void __launch_bounds__(kStreamThreads, blocks_of_multiprocessor(OfRows::kSpec, false))
    quantize_both_kernel(const __grid_constant__ Job rows, const __grid_constant__ Job columns,
                         const __grid_constant__ Squares squares, unsigned steps) {
    using Shared = SharedOfQuantisers<OfRows, OfColumns, kOperandOnly>;
    auto& shared = *dynamic_shared<Shared>();
    typename Shared::SquareOf square(rows, columns, shared.square);
    typename Shared::Rows of_rows(rows, shared.rows, shared.far);
    typename Shared::Columns of_columns(columns, shared.columns, shared.far);
    const int64_t first_col = int64_t{blockIdx.x % squares.across} * kSquare;
    const unsigned first = blockIdx.x / squares.across * steps, end = min(first + steps, squares.down);
    for (unsigned i = first; i < end; ++i) {
        const int64_t first_row = int64_t{i} * kSquare;
        square.load(first_row, first_col);
        Places places(rows, first_row + square.line(), first_col + square.col());
#pragma unroll 1
        for (int part = 0; part < kPartsOfSquare; ++part) {
            Group g;
            square.read_row(part, g);
            of_rows.quantize(g, places, part);
        }
        places = Places(columns, first_col + square.line(), first_row + square.col());
#pragma unroll 1
        for (int part = 0; part < kPartsOfSquare; ++part) {
            Group g;
            square.read_column(part, g);
            of_columns.quantize(g, places, part);
        }
    }
    of_rows.finish();
    of_columns.finish();
}

// Blocks of kStreamThreads, with as much shared memory as a launch must ask for.
template <typename... Parameters, typename... Arguments>
void launch_with_shared(const Context& context, void (*kernel)(Parameters...), int64_t blocks, size_t shared,
                        const Arguments&... arguments) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          "shared memory of a kernel");
    launch(context, kernel, dim3(static_cast<unsigned>(blocks)), dim3(kStreamThreads), shared, arguments...);
}

// The gradients of built-in recipes.
struct OfRows {
    static constexpr std::array kSpecs = {eden(kNvfp4),
                                          twice(eden(kNvfp4)),
                                          stochastic(kNvfp4),
                                          stochastic(kNvfp4),
                                          four_six(stochastic(kNvfp4)),
                                          rotated(kMxfp4, 32),
                                          rotated(stochastic(kMxfp4), 32),
                                          rounded_up(stochastic(kMxfp4))};
};
struct OfColumns {
    static constexpr std::array kSpecs = {eden(kNvfp4),
                                          twice(eden(kNvfp4)),
                                          stochastic(kNvfp4),
                                          rotated(stochastic(kNvfp4), 16),
                                          rotated(four_six(stochastic(kNvfp4)), 16),
                                          rotated(kMxfp4, 32),
                                          rotated(stochastic(kMxfp4), 32),
                                          rounded_up(stochastic(kMxfp4))};
};
constexpr size_t kPairs = OfRows::kSpecs.size();

// kPairs: none of them.
size_t pair_of(const KernelSpec& rows, const KernelSpec& columns) {
    size_t i = 0;
    while (i < kPairs && !(rows == OfRows::kSpecs[i] && columns == OfColumns::kSpecs[i])) ++i;
    return i;
}

// Whether there is a kernel that writes bytes: where folding reads them (quant/fp8_codes.h).
constexpr bool has_bytes_kernel(size_t pair) { return OfRows::kSpecs[pair].format == Format::mxfp4; }

template <size_t kIndex, bool kOperandOnly>
void launch_both(const Context& context, const Job& rows, const Job& columns) {
    using Rows = SpecOf<OfRows, kIndex>;
    using Columns = SpecOf<OfColumns, kIndex>;
    constexpr unsigned kManyBlocks = 2048, kMostSteps = 4;
    const Squares squares(rows, columns);
    const unsigned steps = std::clamp(squares.across * squares.down / kManyBlocks, 1u, kMostSteps);
    launch_with_shared(context, quantize_both_kernel<Rows, Columns, kOperandOnly>,
                       int64_t{squares.across} * divide_up(squares.down, steps),
                       sizeof(SharedOfQuantisers<Rows, Columns, kOperandOnly>), rows, columns, squares,
                       steps);
}

}  // namespace

// Rotations by one round of 16 or 128, or none; or two rounds of 128 in both.
bool has_both_kernel(const Job& rows, const Job& columns) {
    const bool are_twice = rows.spec.rounds == 2 && columns.spec.rounds == 2;
    return std::ranges::all_of(std::array{&rows, &columns}, [&](const Job* job) {
        const int size = job->spec.rotation;
        if (job->spec.out_bf16) return false;
        if (are_twice) return size == kTileCols;
        return size == 0 || (job->spec.rounds == 1 && (size == kGroup || size == kTileCols));
    });
}

void find_both_amaxes_hot(const Context& context, const Job& rows, const Job& columns, float* amaxes) {
    const Squares squares(rows, columns);
    const auto launch_kernel = [&]<int kOfRows, int kOfColumns, int kRounds>() {
        launch_with_shared(context, both_amaxes_kernel<kOfRows, kOfColumns, kRounds>,
                           int64_t{squares.across} * squares.down,
                           sizeof(SharedOfAmaxes<kOfRows, kOfColumns>), rows, columns, squares, amaxes);
    };
    if (rows.spec.rounds == 2) return launch_kernel.template operator()<128, 128, 2>();
    const auto of = [&]<int kOfRows, int kOfColumns>() {
        if (rows.spec.rotation != kOfRows || columns.spec.rotation != kOfColumns) return;
        launch_kernel.template operator()<kOfRows, kOfColumns, 1>();
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

bool has_quantize_both_kernel(const KernelSpec& rows, const KernelSpec& columns, Keep keep) {
    const size_t pair = pair_of(rows, columns);
    if (pair == kPairs) return false;
    return keep == Keep::operand || (keep == Keep::bytes && has_bytes_kernel(pair));
}

void quantize_both_hot(const Context& context, const Job& rows, const Job& columns) {
    const size_t pair = pair_of(rows.spec, columns.spec);
    const auto of = [&]<size_t kIndex>() {
        if (pair != kIndex) return;
        if constexpr (has_bytes_kernel(kIndex)) {
            if (rows.operand == nullptr) return launch_both<kIndex, false>(context, rows, columns);
        }
        launch_both<kIndex, true>(context, rows, columns);
    };
    [&]<size_t... kIndex>(std::index_sequence<kIndex...>) { (of.template operator()<kIndex>(), ...); }
    (std::make_index_sequence<kPairs>());
}

}  // namespace nibble::cuda
