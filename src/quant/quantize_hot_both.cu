// The fast kernels that read a gradient, or a layer's input, once for both of its orientations, along its
// rows and along its columns: squares of 128 x 128 in shared memory.
#include "quant/quantize_hot.cuh"
#include "quant/squares.cuh"

namespace nibble::cuda {

namespace {

using namespace hot;

template <int kOfRows, int kOfColumns>
struct SharedOfAmaxes {
    typename Square<kOfRows != 0, kOfColumns != 0>::Shared square;
    uint4 far[std::max(kVectorsOfRotation<kOfRows>, kVectorsOfRotation<kOfColumns>)];
};

template <int kOfRows, int kOfColumns, int kRounds>
__global__ void __launch_bounds__(kStreamThreads)
    both_amaxes_kernel(const __grid_constant__ Job rows, const __grid_constant__ Job columns,
                       const __grid_constant__ Squares squares) {
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
    give_rotated_amax<kOfRows>(rows, &rows.scalars->amax, of_rows);
    __syncthreads();
    give_rotated_amax<kOfColumns>(columns, &columns.scalars->amax, of_columns);
}

// The host says how large it is: nothing in it may be laid out otherwise there, as empty members are with
// [[no_unique_address]].
template <typename OfRows, bool kRowsOperandOnly, typename OfColumns, bool kColumnsOperandOnly>
struct SharedOfQuantisers {
    using Rows = QuantiserOf<OfRows, kRowsOperandOnly>;
    using Columns = QuantiserOf<OfColumns, kColumnsOperandOnly>;
    using SquareOf = Square<OfRows::kSpec.rotation != 0, OfColumns::kSpec.rotation != 0>;

    typename SquareOf::Shared square;
    uint4 far[std::max(Rows::kVectorsOfFar, Columns::kVectorsOfFar)];
    typename Rows::Shared rows;
    typename Columns::Shared columns;
};

// A thread block has `steps` squares, one below the other. A stream along columns keeps lines ahead in
// registers, a square does not: those that are enough along the rows are enough.
template <typename OfRows, bool kRowsOperandOnly, typename OfColumns, bool kColumnsOperandOnly>
__global__ void __launch_bounds__(kStreamThreads, blocks_of_multiprocessor(OfRows::kSpec, false))
    quantize_both_kernel(const __grid_constant__ Job rows, const __grid_constant__ Job columns,
                         const __grid_constant__ Squares squares, unsigned steps) {
    using Shared = SharedOfQuantisers<OfRows, kRowsOperandOnly, OfColumns, kColumnsOperandOnly>;
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
            square.place(part, first_row, first_col, g);
            of_rows.quantize(g, places, part);
        }
        places = Places(columns, first_col + square.line(), first_row + square.col());
#pragma unroll 1
        for (int part = 0; part < kPartsOfSquare; ++part) {
            Group g;
            square.read_column(part, g);
            square.place(part, first_col, first_row, g);
            of_columns.quantize(g, places, part);
        }
    }
    of_rows.finish();
    of_columns.finish();
}

struct Pair {
    KernelSpec rows, columns;

    friend bool operator==(const Pair&, const Pair&) = default;
};
constexpr Pair alike(const KernelSpec& s) { return {s, s}; }

// Gradients of built-in recipes for products that emulate. They have kernels that write operands alone, too.
constexpr std::array kOfGradients = {
    alike(eden(kNvfp4)),
    alike(twice(eden(kNvfp4))),
    alike(stochastic(kNvfp4)),
    Pair{stochastic(kNvfp4), rotated(stochastic(kNvfp4), 16)},
    Pair{four_six(stochastic(kNvfp4)), rotated(four_six(stochastic(kNvfp4)), 16)},
    alike(rotated(kMxfp4, 32)),
    alike(rotated(stochastic(kMxfp4), 32)),
    alike(rounded_up(stochastic(kMxfp4))),
};
// Inputs of layers that are quantised for the forward and, along their columns, for the weight gradient.
// Those of E2M1 in small blocks have kernels that write operands alone for the forward.
constexpr std::array kOfInputs = {
    Pair{kNvfp4, rotated(kNvfp4, 16)},
    Pair{kNvfp4, stochastic(kNvfp4)},
    Pair{four_six(kNvfp4), rotated(kNvfp4, 16)},
    Pair{four_six(kNvfp4), rotated(four_six(kNvfp4), 16)},
    Pair{rotated(kFp4, 128), kFp4},
};
// And all that have fast kernels, with themselves.
constexpr auto kPairs = [] {
    std::array<Pair, kOfGradients.size() + kOfInputs.size() + OfActivations::kSpecs.size()> pairs{};
    auto next = std::ranges::copy(kOfGradients, pairs.begin()).out;
    next = std::ranges::copy(kOfInputs, next).out;
    std::ranges::transform(OfActivations::kSpecs, next, alike);
    return pairs;
}();

// The first place of a pair; kPairs.size(): none.
constexpr size_t place_of(const Pair& pair) {
    return static_cast<size_t>(std::ranges::find(kPairs, pair) - kPairs.begin());
}

template <size_t kIndex>
struct RowsOf {
    static constexpr KernelSpec kSpec = kPairs[kIndex].rows;
};
template <size_t kIndex>
struct ColumnsOf {
    static constexpr KernelSpec kSpec = kPairs[kIndex].columns;
};

template <size_t kIndex, bool kRowsOperandOnly, bool kColumnsOperandOnly>
void launch_both(const Context& context, const Job& rows, const Job& columns) {
    using Rows = RowsOf<kIndex>;
    using Columns = ColumnsOf<kIndex>;
    constexpr unsigned kManyBlocks = 2048, kMostSteps = 4;
    const Squares squares(rows, columns);
    const unsigned steps = std::clamp(squares.across * squares.down / kManyBlocks, 1u, kMostSteps);
    launch_squares(context, quantize_both_kernel<Rows, kRowsOperandOnly, Columns, kColumnsOperandOnly>,
                   int64_t{squares.across} * divide_up(squares.down, steps),
                   sizeof(SharedOfQuantisers<Rows, kRowsOperandOnly, Columns, kColumnsOperandOnly>), rows,
                   columns, squares, steps);
}

}  // namespace

// Rotations by one round of 16 or 128, or none; or two rounds of 128 in both.
bool has_both_amaxes_kernel(const KernelSpec& rows, const KernelSpec& columns) {
    const bool are_twice = rows.rounds == 2 && columns.rounds == 2;
    return std::ranges::all_of(std::array{&rows, &columns}, [&](const KernelSpec* spec) {
        const int size = spec->rotation;
        if (spec->out_bf16 || spec->rotation_of_rows != 0 || spec->is_row) return false;
        if (are_twice) return size == kTileCols;
        return size == 0 || (spec->rounds == 1 && (size == kGroup || size == kTileCols));
    });
}

void find_both_amaxes_hot(const Context& context, const Job& rows, const Job& columns) {
    const Squares squares(rows, columns);
    const auto launch_kernel = [&]<int kOfRows, int kOfColumns, int kRounds>() {
        launch_squares(context, both_amaxes_kernel<kOfRows, kOfColumns, kRounds>,
                       int64_t{squares.across} * squares.down, sizeof(SharedOfAmaxes<kOfRows, kOfColumns>),
                       rows, columns, squares);
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

bool has_quantize_both_kernel(const KernelSpec& rows, const KernelSpec& columns) {
    return place_of(Pair{rows, columns}) < kPairs.size();
}

void quantize_both_hot(const Context& context, const Job& rows, const Job& columns) {
    const size_t place = place_of(Pair{rows.spec, columns.spec});
    const auto of = [&]<size_t kIndex>() {
        if constexpr (place_of(kPairs[kIndex]) == kIndex) {
            if (place != kIndex) return;
            constexpr bool kIsOfGradients = kIndex < kOfGradients.size(),
                           kIsOfInputs = !kIsOfGradients && kIndex < kOfGradients.size() + kOfInputs.size();
            if constexpr (kIsOfGradients) {
                if (rows.codes == nullptr && columns.codes == nullptr)
                    return launch_both<kIndex, true, true>(context, rows, columns);
            }
            if constexpr (kIsOfInputs && has_operand_kernel(kPairs[kIndex].rows)) {
                if (rows.codes == nullptr) return launch_both<kIndex, true, false>(context, rows, columns);
            }
            launch_both<kIndex, false, false>(context, rows, columns);
        }
    };
    [&]<size_t... kIndex>(std::index_sequence<kIndex...>) { (of.template operator()<kIndex>(), ...); }
    (std::make_index_sequence<kPairs.size()>());
}

}  // namespace nibble::cuda
