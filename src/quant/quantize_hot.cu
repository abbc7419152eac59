// The fast kernels for activations and gradients, in BF16, and for the forward's packed bytes.
#include "quant/quantize_hot.cuh"

namespace nibble::cuda {

namespace {

using namespace hot;

struct OfActivations {
    static constexpr std::array kSpecs = {
        kNvfp4,
        stochastic(kNvfp4),
        rotated(kNvfp4, 16),
        rotated(stochastic(kNvfp4), 16),
        four_six(kNvfp4),
        eden(kNvfp4),
        rotated(kMxfp4, 32),
        quest(kMxfp4),
        fp8(Element::e4m3),
        fp8(Element::e5m2),
    };
};

// One read for both orientations of x, a square of 128 x 128 for each thread block: along the rows from
// registers, along the columns through shared memory.
constexpr int kSquare = 128;

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
    give_rotated_amax<kOfRows>(rows, reinterpret_cast<uint32_t*>(amaxes), of_rows);
    __syncthreads();
    give_rotated_amax<kOfColumns>(columns, reinterpret_cast<uint32_t*>(amaxes + 1), of_columns);
}

template <bool kRotates, typename Body>
void with_stream(const Job& job, bool transposed, Body&& body) {
    if (!transposed) return body.template operator()<RowStream<PlainPiece, kRotates>>();
    if (job.x != nullptr) return body.template operator()<ColumnStream<PlainPiece, kRotates>>();
    body.template operator()<ColumnStream<PackedPiece, kRotates>>();
}

}  // namespace

bool has_hot_kernels(const Job& job, bool transposed) {
    return job.is_bf16 ? place_of<OfActivations>(job) < OfActivations::kSpecs.size()
                       : has_hot_kernels_of_weights(job, transposed);
}

void find_amax_hot(const Context& context, const Job& job, bool transposed) {
    if (!job.is_bf16) return find_amax_of_weights_hot(context, job, transposed);
    const auto launch_amax = [&]<int kRotation>() {
        if (job.spec.rotation != kRotation) return;
        with_stream<kRotation != 0>(job, transposed, [&]<typename Stream>() {
            launch_stream<Stream>(context, amax_stream_kernel<kRotation, Stream>, job);
        });
    };
    launch_amax.template operator()<0>();
    launch_amax.template operator()<16>();
    launch_amax.template operator()<32>();
    launch_amax.template operator()<128>();
}

void quantize_hot(const Context& context, const Job& job, bool transposed) {
    if (!job.is_bf16) return quantize_weights_hot(context, job, transposed);
    with_place<OfActivations>(job, [&]<size_t kIndex>() {
        with_stream<OfActivations::kSpecs[kIndex].rotation != 0>(job, transposed, [&]<typename Stream>() {
            launch_stream<Stream>(context, quantize_stream_kernel<OfActivations, kIndex, Stream>, job);
        });
    });
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
