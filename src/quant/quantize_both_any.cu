// One read of a gradient or an input for both of its orientations, of every spec: for those that
// quantize_hot_both.cu has no kernel for, rotations of rows among them. For halo's, which rotates rows, it is
// compiled, too.
#include "quant/quantize_hot.cuh"
#include "quant/squares.cuh"

namespace nibble::cuda {

namespace {

using PlainSquare = Square<false, false>;

// The spec of an operand: what its job says, or one that is known when the kernel is compiled.
struct SpecOfJob {
    static __device__ const KernelSpec& of(const Job& job) { return job.spec; }
};
struct HaloRows {
    static constexpr KernelSpec kSpec = [] {
        KernelSpec s = hot::kFp4;
        s.rotation_of_rows = 128;
        s.rounds = 1;
        return s;
    }();
    static constexpr KernelSpec of(const Job&) { return kSpec; }
};
struct HaloColumns {
    static constexpr KernelSpec kSpec = hot::kFp4;
    static constexpr KernelSpec of(const Job&) { return kSpec; }
};

// A square in FP32, rotated along the other dimension of an operand: a line of it is a row of the operand.
class TurnedSquare {
  public:
    static constexpr size_t kBytes = sizeof(float) * kSquare * kSquare;

    __device__ explicit TurnedSquare(float* shared) : of_(shared) {}

    // The values of a thread's group that goes down the lines, in that column.
    __device__ __forceinline__ void write_down(int first_line, int col, const Group& g) const {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) of_[at(first_line + i, col)] = g.x[i];
    }
    __device__ __forceinline__ void read_line(int line, int first_col, Group& g) const {
#pragma unroll
        for (int i = 0; i < kGroup; i += 4) {
            const float4 four = *reinterpret_cast<const float4*>(of_ + at(line, first_col + i));
            g.x[i] = four.x;
            g.x[i + 1] = four.y;
            g.x[i + 2] = four.z;
            g.x[i + 3] = four.w;
        }
    }

  private:
    // Pieces of four are interchanged within a line, so that neither side meets a bank twice.
    static __device__ int at(int line, int col) {
        const int piece = col / 4;
        return line * kSquare + (piece ^ piece / 8 % 4 ^ line / kGroup % 8) * 4 + col % 4;
    }

    float* const of_;
};

// One of the two operands of a square: its groups, rotated. Along the columns the square is read transposed.
template <bool kAlongColumns, typename Spec>
class OperandOfSquare {
  public:
    // turned: memory that both operands use, where one of them rotates rows.
    __device__ OperandOfSquare(const Job& job, const PlainSquare& square, TurnedSquare turned)
        : job_(job), square_(square), turned_(turned) {}

    // Called by all threads when the square is loaded, its first element being that one of x.
    __device__ void begin(int64_t first_row, int64_t first_col) {
        first_row_ = kAlongColumns ? first_col : first_row;
        first_col_ = kAlongColumns ? first_row : first_col;
        if (Spec::of(job_).rotation_of_rows == 0) return;
        KernelSpec across = Spec::of(job_);  // along the columns of the other orientation
        across.rotation = across.rotation_of_rows;
        __syncthreads();  // all have read what the other operand left
#pragma unroll 1
        for (int part = 0; part < kPartsOfSquare; ++part) {
            // Of the other orientation, whose columns are the rows here.
            Group g;
            read_plain<!kAlongColumns>(part, g);
            PlainSquare::place(part, first_col_, first_row_, g);
            rotate_group(across, job_, hadamard_factor(across.rotation), g);
            turned_.write_down(PlainSquare::col(), part * kRowsOfPart + PlainSquare::line(), g);
        }
        __syncthreads();
    }
    // The part-th group of this thread. factor: of a rotation of columns. Called by all threads.
    __device__ __forceinline__ void read(int part, float factor, Group& g) const {
        PlainSquare::place(part, first_row_, first_col_, g);
        if (Spec::of(job_).rotation_of_rows != 0) {
            turned_.read_line(part * kRowsOfPart + PlainSquare::line(), PlainSquare::col(), g);
            // What the contraction is padded with was not rotated: it has no signs.
#pragma unroll
            for (int i = 0; i < kGroup; ++i)
                if (g.col + i >= job_.cols) g.x[i] = 0.0f;
        } else {
            read_plain<kAlongColumns>(part, g);
            if (Spec::of(job_).rotation != 0) rotate_group(Spec::of(job_), job_, factor, g);
        }
    }

  private:
    template <bool kColumns>
    __device__ __forceinline__ void read_plain(int part, Group& g) const {
        if constexpr (kColumns)
            square_.read_column(part, g);
        else
            square_.read_row(part, g);
    }

    const Job& job_;
    const PlainSquare& square_;
    const TurnedSquare turned_;
    int64_t first_row_ = 0, first_col_ = 0;
};

// --- amaxes ---

// Of the whole operand, and of each of its rows where those have scales.
template <bool kAlongColumns, typename Spec>
__device__ __forceinline__ void find_amax_of_square(const Job& job,
                                                    const OperandOfSquare<kAlongColumns, Spec>& operand) {
    uint32_t largest = 0;
#pragma unroll 1
    for (int part = 0; part < kPartsOfSquare; ++part) {
        Group g;
        operand.read(part, job.amax_factor, g);
        if (Spec::of(job).is_row) give_amax_of_row(job, g);
        largest = max(largest, bits_of_largest(g.x));
    }
    give_amax(&job.scalars->amax, largest);
}

template <typename SpecOfRows, typename SpecOfColumns>
__global__ void __launch_bounds__(kStreamThreads)
    any_both_amaxes_kernel(const __grid_constant__ Job rows, const __grid_constant__ Job columns,
                           const __grid_constant__ Squares squares) {
    auto& shared = *dynamic_shared<PlainSquare::Shared>();
    const TurnedSquare turned(reinterpret_cast<float*>(&shared + 1));
    PlainSquare square(rows, columns, shared);
    const int64_t first_row = int64_t{blockIdx.x / squares.across} * kSquare,
                  first_col = int64_t{blockIdx.x % squares.across} * kSquare;
    square.load(first_row, first_col);
    OperandOfSquare<false, SpecOfRows> of_rows(rows, square, turned);
    of_rows.begin(first_row, first_col);
    find_amax_of_square(rows, of_rows);
    __syncthreads();
    OperandOfSquare<true, SpecOfColumns> of_columns(columns, square, turned);
    of_columns.begin(first_row, first_col);
    find_amax_of_square(columns, of_columns);
}

// --- codes ---

struct SharedOfAny {
    TensorValues tensor;
    PerThread<kRowsOfPart> threads;
};

template <bool kAlongColumns, typename Spec>
class AnyQuantiser {
  public:
    // Called by all threads.
    __device__ AnyQuantiser(const Job& job, const PlainSquare& square, TurnedSquare turned,
                            SharedOfAny& shared)
        : job_(job), operand_(job, square, turned), shared_(shared) {
        shared.tensor.prepare(Spec::of(job), job);
    }
    // Called by all threads when a square is loaded.
    __device__ void quantize(int64_t first_row, int64_t first_col) {
        const KernelSpec& s = Spec::of(job_);
        operand_.begin(first_row, first_col);
        if (s.block_rows > kRowsOfPart) find_largest_of_square();
        ScaleCoins coins;
#pragma unroll 1
        for (int part = 0; part < kPartsOfSquare; ++part) {
            Group g;
            operand_.read(part, job_.factor, g);
            largest_value_ = max(largest_value_, bits_of_largest(g.x));
            quantize_group(s, job_, shared_.tensor, g, shared_.threads, coins, part, largest_scale_);
        }
    }
    __device__ void finish() const {
        finish_quantising(Spec::of(job_), job_, largest_value_, largest_scale_);
    }

  private:
    // Blocks of 128 x 128.
    __device__ void find_largest_of_square() {
        auto* const largest = reinterpret_cast<uint32_t*>(&shared_.threads.of_taller_block);
        __syncthreads();
        if (threadIdx.x == 0) *largest = 0;
        __syncthreads();
        uint32_t mine = 0;
#pragma unroll 1
        for (int part = 0; part < kPartsOfSquare; ++part) {
            Group g;
            operand_.read(part, job_.factor, g);
            mine = max(mine, bits_of_largest(g.x));
        }
        atomicMax(largest, mine);
        __syncthreads();
    }

    const Job& job_;
    OperandOfSquare<kAlongColumns, Spec> operand_;
    SharedOfAny& shared_;
    uint32_t largest_value_ = 0;
    float largest_scale_ = 0.0f;
};

template <typename SpecOfRows, typename SpecOfColumns>
__global__ void __launch_bounds__(kStreamThreads)
    quantize_both_any_kernel(const __grid_constant__ Job rows, const __grid_constant__ Job columns,
                             const __grid_constant__ Squares squares) {
    __shared__ SharedOfAny shared_of_rows, shared_of_columns;
    auto& shared = *dynamic_shared<PlainSquare::Shared>();
    const TurnedSquare turned(reinterpret_cast<float*>(&shared + 1));
    PlainSquare square(rows, columns, shared);
    AnyQuantiser<false, SpecOfRows> of_rows(rows, square, turned, shared_of_rows);
    AnyQuantiser<true, SpecOfColumns> of_columns(columns, square, turned, shared_of_columns);
    const int64_t first_row = int64_t{blockIdx.x / squares.across} * kSquare,
                  first_col = int64_t{blockIdx.x % squares.across} * kSquare;
    square.load(first_row, first_col);
    of_rows.quantize(first_row, first_col);
    of_columns.quantize(first_row, first_col);
    of_rows.finish();
    of_columns.finish();
}

void launch_any(const Context& context, void (*kernel)(Job, Job, Squares), const Job& rows,
                const Job& columns) {
    // What a thread block may have on sm_86 and sm_89.
    static_assert(sizeof(PlainSquare::Shared) + TurnedSquare::kBytes + 2 * sizeof(SharedOfAny) <= 99 << 10);
    const Squares squares(rows, columns);
    const bool turns = rows.spec.rotation_of_rows != 0 || columns.spec.rotation_of_rows != 0;
    launch_squares(context, kernel, int64_t{squares.across} * squares.down,
                   sizeof(PlainSquare::Shared) + (turns ? TurnedSquare::kBytes : 0), rows, columns, squares);
}

// The gradients of the recipe halo.
bool is_halo(const Job& rows, const Job& columns) {
    return rows.spec == HaloRows::kSpec && columns.spec == HaloColumns::kSpec;
}

}  // namespace

void find_both_amaxes_any(const Context& context, const Job& rows, const Job& columns) {
    launch_any(context,
               is_halo(rows, columns) ? any_both_amaxes_kernel<HaloRows, HaloColumns>
                                      : any_both_amaxes_kernel<SpecOfJob, SpecOfJob>,
               rows, columns);
}

void quantize_both_any(const Context& context, const Job& rows, const Job& columns) {
    launch_any(context,
               is_halo(rows, columns) ? quantize_both_any_kernel<HaloRows, HaloColumns>
                                      : quantize_both_any_kernel<SpecOfJob, SpecOfJob>,
               rows, columns);
}

}  // namespace nibble::cuda
