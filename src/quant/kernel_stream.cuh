// How the kernels of quantize_hot.cuh read x: BF16 or F32, row by row or transposed, or the packed bytes of
// the forward, transposed. Tile by tile downwards: while one is quantised the next is on its way. The signs
// of the rotation are applied on the way.
//
// A piece is what a thread reads at once: elements that lie side by side as they are stored.
//   kWidth            elements
//   Stored            what becomes of an element in a tile
//   Source            where a thread's pieces are
//   load(from, there) the first `there` elements; those beyond are 0
//   words(to)         as Stored
//
// A stream has
//   kRows         rows of a tile, which has 128 columns
//   kParts        groups of a thread in a tile, kRowsOfPart rows apart
//   fetch()       begins to read the next tile, the first at first
//   settle()      called by all threads when that tile is needed
//   read(part, g) the elements of a group of the tile that settled, and where they are in the tile; the next
//                 can be fetched after settle(), or, not transposed, after the one read()
#pragma once

#include "quant/kernel_e2m1.cuh"
#include "quant/kernel_read.cuh"

namespace nibble::cuda {

inline constexpr int kStreamThreads = 256;
inline constexpr int kRowsOfPart = kStreamThreads / kGroups;

// The sign of column `col` of the operand, at both halves of a word.
__device__ inline uint32_t sign_pair(const Job& job, int64_t col) {
    const int place = static_cast<int>(col) & (job.spec.rotation - 1);
    return (job.signs(0, place / 32) >> (place % 32) & 1u) * 0x80008000u;
}

// A length that counts down tile by tile, within the tiles of one thread block.
__device__ inline int count_from(int64_t begin, int64_t end) {
    return static_cast<int>(min(static_cast<long long>(end - begin), 1LL << 30));
}

__device__ inline void unpack(uint32_t word, float& first, float& second) {
    first = __uint_as_float(word << 16);
    second = __uint_as_float(word & 0xffff0000u);
}

// Of x, from an element on.
template <typename Element>
struct PlainSource {
    const Element* x;
    bool is_vector;

    __device__ PlainSource(const Job& job, int64_t line, int64_t first)
        : x(static_cast<const Element*>(job.x) + line * job.stride + first), is_vector(job.is_vector) {}
    __device__ void advance(int64_t elements) { x += elements; }
};

// BF16, in words of two.
struct PlainPiece {
    using Source = PlainSource<Bf16>;
    using Stored = uint16_t;
    static constexpr int kWidth = kGroup;
    uint4 of[2];

    __device__ __forceinline__ void load(const Source& from, int there) {
        if (from.is_vector && there >= kGroup) {
            of[0] = reinterpret_cast<const uint4*>(from.x)[0];
            of[1] = reinterpret_cast<const uint4*>(from.x)[1];
        } else {
            of[0] = four_words(from.x, there);
            of[1] = four_words(from.x + kGroup / 2, there - kGroup / 2);
        }
    }
    __device__ __forceinline__ void words(uint32_t (&to)[kGroup / 2]) const {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            to[4 * i] = of[i].x;
            to[4 * i + 1] = of[i].y;
            to[4 * i + 2] = of[i].z;
            to[4 * i + 3] = of[i].w;
        }
    }

  private:
    // At the edges, and where rows are not aligned. Out of line: the registers are the other way's.
    static __device__ __attribute__((noinline)) uint4 four_words(const Bf16* x, int there) {
        uint32_t words[4] = {};
        for (int j = 0; j < 8 && j < there; ++j) words[j / 2] |= uint32_t{x[j].bits} << (j % 2 * 16);
        return {words[0], words[1], words[2], words[3]};
    }
};

struct FloatPiece {
    using Source = PlainSource<float>;
    using Stored = uint32_t;
    static constexpr int kWidth = 4;
    uint4 of;

    __device__ __forceinline__ void load(const Source& from, int there) {
        of = from.is_vector && there >= kWidth ? *reinterpret_cast<const uint4*>(from.x)
                                               : four_words(from.x, there);
    }
    __device__ __forceinline__ void words(uint32_t (&to)[kWidth]) const {
        to[0] = of.x;
        to[1] = of.y;
        to[2] = of.z;
        to[3] = of.w;
    }

  private:
    static __device__ __attribute__((noinline)) uint4 four_words(const float* x, int there) {
        uint32_t words[kWidth] = {};
        for (int j = 0; j < kWidth && j < there; ++j) words[j] = __float_as_uint(x[j]);
        return {words[0], words[1], words[2], words[3]};
    }
};

// Of the forward's bytes: E2M1 codes and the scale that they share. Worth code * scale, exact in BF16.
struct PackedPiece {
    using Stored = uint16_t;
    static constexpr int kWidth = kGroup;
    struct Source {
        const uint8_t *codes, *scales;
        int shift;
        bool is_e8m0;

        __device__ Source(const Job& job, int64_t line, int64_t first)
            : codes(job.forward.codes + (line * job.stride + first) / 2),
              scales(job.forward.scales + ((line * job.stride + first) >> job.forward.block_shift)),
              shift(job.forward.block_shift),
              is_e8m0(job.forward.is_e8m0) {}
        __device__ void advance(int64_t elements) {
            codes += elements / 2;
            scales += elements >> shift;
        }
    };
    uint64_t codes;
    float scale;

    __device__ __forceinline__ void load(const Source& from, int there) {
        codes = 0;
        scale = 1.0f;
        if (there <= 0) return;
        codes = *reinterpret_cast<const uint64_t*>(from.codes);
        scale = from.is_e8m0 ? e8m0_decode(*from.scales) : scale_value(*from.scales);
        if (there < kGroup) codes &= (uint64_t{1} << 4 * there) - 1;
    }
    __device__ __forceinline__ void words(uint32_t (&to)[kGroup / 2]) const {
        const uint32_t factor = __byte_perm(__float_as_uint(scale), 0, 0x3232);
        e2m1_times(static_cast<uint32_t>(codes), factor, to);
        e2m1_times(static_cast<uint32_t>(codes >> 32), factor, to + 4);
    }
};

__device__ inline float number(uint16_t bf16) { return __uint_as_float(uint32_t{bf16} << 16); }
__device__ inline float number(uint32_t f32) { return __uint_as_float(f32); }

// kRotates: the spec has a rotation, and its signs are applied.
template <typename Piece, bool kRotates>
class RowStream {
  public:
    static constexpr bool kTransposed = false;
    static constexpr int kRows = kRowsOfPart, kParts = 1;
    // Signs of the rotation in pairs: registers are scarcer.
    static constexpr size_t kShared =
        kRotates && sizeof(typename Piece::Stored) == 2 ? sizeof(uint32_t) * kTileCols / 2 : 0;

    __device__ RowStream(const Job& job, void* shared, int64_t first_row, int64_t first_col)
        : job_(job),
          signs_(static_cast<uint32_t*>(shared)),
          source_(job, first_row + row(), first_col + col()),
          step_(kRows * job.stride),
          there_(count_from(first_col + col(), job.cols)),
          rows_(count_from(first_row + row(), job.rows)) {
        if constexpr (kHasSignPairs) {
            if (threadIdx.x < kTileCols / 2) {
                const int col = 2 * static_cast<int>(threadIdx.x);
                signs_[threadIdx.x] =
                    (sign_pair(job, col) & 0x8000u) | (sign_pair(job, col + 1) & 0x80000000u);
            }
            __syncthreads();
        }
    }
    __device__ __forceinline__ void fetch() {
        typename Piece::Source source = source_;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            ahead_[i].load(source, rows_ > 0 ? there_ - i * Piece::kWidth : 0);
            source.advance(Piece::kWidth);
        }
        source_.advance(step_);
        rows_ -= kRows;
    }
    __device__ __forceinline__ void settle() {}
    __device__ __forceinline__ void read(int, Group& g) const {
        g.row = row();
        g.col = col();
        uint32_t signs[kGroup / 2];
        if constexpr (kHasSignPairs) {
#pragma unroll
            for (int i = 0; i < kGroup / 2; i += 4) {
                const uint4 four = *reinterpret_cast<const uint4*>(signs_ + col() / 2 + i);
                signs[i] = four.x;
                signs[i + 1] = four.y;
                signs[i + 2] = four.z;
                signs[i + 3] = four.w;
            }
        }
#pragma unroll
        for (int p = 0; p < kPieces; ++p) {
            uint32_t words[kWords];
            ahead_[p].words(words);
#pragma unroll
            for (int i = 0; i < kWords; ++i) {
                if constexpr (kIsPairs) {
                    unpack(kHasSignPairs ? words[i] ^ signs[i] : words[i], g.x[2 * i], g.x[2 * i + 1]);
                } else {
                    g.x[p * kWords + i] = number(words[i]);
                }
            }
        }
        if constexpr (kRotates && !kIsPairs) apply_signs(job_.spec, job_, 0, g);
    }

  private:
    static constexpr bool kIsPairs = sizeof(typename Piece::Stored) == 2;
    static constexpr bool kHasSignPairs = kRotates && kIsPairs;
    static constexpr int kPieces = kGroup / Piece::kWidth;  // of a thread
    static constexpr int kWords = Piece::kWidth / (kIsPairs ? 2 : 1);

    static __device__ int row() { return static_cast<int>(threadIdx.x) / kGroups; }
    static __device__ int col() { return static_cast<int>(threadIdx.x) % kGroups * kGroup; }

    const Job& job_;
    uint32_t* const signs_;
    typename Piece::Source source_;
    int64_t step_;
    int there_, rows_;  // columns of this thread and rows from its next on that exist
    Piece ahead_[kPieces];
};

// x is stored [contraction, rows]: through a tile in shared memory, 128 lines of 64 rows. Vectors of 16 bytes
// are interchanged within a line so that neither side meets a bank twice.
template <typename Piece, bool kRotates>
class ColumnStream {
    using Stored = typename Piece::Stored;

  public:
    static constexpr bool kTransposed = true;
    static constexpr int kRows = 64, kParts = kRows / kRowsOfPart;
    static constexpr size_t kShared = sizeof(Stored) * kTileCols * kRows;

    __device__ ColumnStream(const Job& job, void* shared, int64_t first_row, int64_t first_col)
        : tile_(static_cast<Stored*>(shared)),
          source_(job, first_col + line_of(0), first_row + first_of_piece()),
          lines_apart_(kLinesApart * job.stride),
          lines_(count_from(first_col + line_of(0), job.cols)),
          there_(count_from(first_row + first_of_piece(), job.rows)) {
#pragma unroll
        for (int i = 0; kRotates && i < kPieces; ++i) {
            signs_[i] = sign_pair(job, line_of(i)) & (kVector == 4 ? 0x80000000u : 0x80008000u);
            keep(signs_[i]);
        }
    }
    __device__ __forceinline__ void fetch() {
        typename Piece::Source source = source_;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            ahead_[i].load(source, lines_ > i * kLinesApart ? there_ : 0);
            source.advance(lines_apart_);
        }
        source_.advance(kRows);
        there_ -= kRows;
    }
    __device__ __forceinline__ void settle() {
        __syncthreads();  // all have read the tile before
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            uint32_t words[kWords];
            ahead_[i].words(words);
            const uint32_t sign = kRotates ? signs_[i] : 0;
#pragma unroll
            for (int v = 0; v < kWords / 4; ++v) {
                *reinterpret_cast<uint4*>(tile_ + at(line_of(i), first_of_piece() + kVector * v)) = {
                    words[4 * v] ^ sign, words[4 * v + 1] ^ sign, words[4 * v + 2] ^ sign,
                    words[4 * v + 3] ^ sign};
            }
        }
        __syncthreads();
    }
    __device__ __forceinline__ void read(int part, Group& g) const {
        const int row = part * kRowsOfPart + static_cast<int>(threadIdx.x) / kGroups;
        const int col = static_cast<int>(threadIdx.x) % kGroups * kGroup;
        g.row = row;
        g.col = col;
        const Stored* const from = tile_ + at(col, row);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) g.x[i] = number(from[i * kRows]);
    }

  private:
    static constexpr int kVector = 16 / sizeof(Stored);  // elements
    static constexpr int kWords = Piece::kWidth * static_cast<int>(sizeof(Stored)) / 4;
    static constexpr int kPiecesOfLine = kRows / Piece::kWidth;
    static constexpr int kPieces = kTileCols * kPiecesOfLine / kStreamThreads;  // of a thread
    static constexpr int kLinesApart = kStreamThreads / kPiecesOfLine;

    static __device__ int line_of(int i) {
        return static_cast<int>(threadIdx.x) / kPiecesOfLine + i * kLinesApart;
    }
    static __device__ int first_of_piece() {
        return static_cast<int>(threadIdx.x) % kPiecesOfLine * Piece::kWidth;
    }
    // Where element (line, row) lies: the same for the 16 lines of a group, but for the line.
    static __device__ int at(int line, int row) { return line * kRows + (row ^ line / kGroup % 8 * kVector); }

    Stored* tile_;
    typename Piece::Source source_;
    int64_t lines_apart_;
    int lines_, there_;  // lines from this thread's first on, and rows from its next, that exist
    uint32_t signs_[kPieces];
    Piece ahead_[kPieces];
};

// The groups of a thread in the operand, one after the other, kRowsOfPart rows apart.
class Places {
  public:
    __device__ Places(const Job& job, int64_t row, int64_t col)
        : first_(row * job.padded_cols + col),
          step_(kRowsOfPart * job.padded_cols),
          rows_(col < job.padded_cols ? count_from(row, job.rows) : 0),
          begin_(first_),
          operand_(job.operand + first_) {}
    __device__ __forceinline__ void advance() {
        first_ += step_;
        operand_ += step_;
        rows_ -= kRowsOfPart;
    }
    // The index of the group's first element, and of that of a thread's n-th group.
    __device__ __forceinline__ int64_t first() const { return first_; }
    __device__ __forceinline__ int64_t first_of(int n) const { return begin_ + n * step_; }
    // Whether the group lies in the operand.
    __device__ __forceinline__ bool is_there() const { return rows_ > 0; }
    // What products read, in pairs of BF16.
    __device__ __forceinline__ void store_operand(const uint32_t (&pairs)[kGroup / 2]) const {
        auto* const to = reinterpret_cast<uint4*>(operand_);
        to[0] = {pairs[0], pairs[1], pairs[2], pairs[3]};
        to[1] = {pairs[4], pairs[5], pairs[6], pairs[7]};
    }

  private:
    int64_t first_, step_;
    int rows_;  // of the operand from this group's on
    int64_t begin_;
    Bf16* operand_;
};

// The groups of a thread, one after the other.
template <typename Stream>
class Walk {
  public:
    // Begins to read. `shared`: of Stream::kShared bytes.
    __device__ Walk(const Job& job, void* shared)
        : tiles_(job), stream_(job, shared, tiles_.first_row, tiles_.first_col) {
        stream_.fetch();
    }
    // Calls body(group, index) for each; all threads do.
    template <typename Body>
    __device__ __forceinline__ void each(Body&& body) {
        for (int step = 0; step < tiles_.count; ++step) {
            stream_.settle();
            const auto fetch = [&] {
                if (step + 1 < tiles_.count) stream_.fetch();
            };
            if constexpr (Stream::kTransposed) fetch();
#pragma unroll 1
            for (int part = 0; part < Stream::kParts; ++part) {
                Group g;
                stream_.read(part, g);
                if constexpr (!Stream::kTransposed) {
                    for (float& x : g.x) keep(x);
                    fetch();
                }
                g.row += tiles_.row(step);
                g.col += tiles_.first_col;
                body(g, step * Stream::kParts + part);
            }
        }
    }

    // Where the groups go, the first at first.
    __device__ Places places(const Job& job) const {
        const int thread = static_cast<int>(threadIdx.x);
        return {job, tiles_.first_row + thread / kGroups, tiles_.first_col + thread % kGroups * kGroup};
    }

  private:
    const Tiles<Stream::kTransposed, Stream::kRows> tiles_;
    Stream stream_;
};

}  // namespace nibble::cuda
