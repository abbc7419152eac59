#include "core/cuda_vector.cuh"
#include "nn/cuda_forms.h"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 256, kPieces = 2;  // of a thread

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Where piece `i` of h [T, F] and those of gate and up in [T, 2F] begin.
template <int kWidth>
struct Places {
    int64_t h, gate;

    __device__ Places(int64_t i, int64_t cols) {
        using Index = std::conditional_t<kWidth == 1, int64_t, uint32_t>;  // 32 bits divide faster
        h = i * kWidth;
        gate = h + static_cast<int64_t>(static_cast<Index>(i) / static_cast<Index>(cols / kWidth)) * cols;
    }
};

// largest: of what this thread stored, before rounding, which keeps the order.
template <typename Element>
__device__ void give_amax(float* amax, float largest) {
    if (amax == nullptr) return;
    const float before[1] = {largest};
    raise_to(amax, Piece<Element, 1>::of(before)[0]);
}

void clear_amax(const Context& context, float* amax) {
    if (amax == nullptr) return;
    check(cudaMemsetAsync(amax, 0, sizeof(float), context.stream), "clearing memory of the GPU");
}

template <int kWidth, typename Element>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(int64_t pieces, int64_t cols, const Element* gate_up, Element* h, float* amax) {
    using Values = Piece<Element, kWidth>;
    const int64_t first = int64_t{blockIdx.x} * kThreads * kPieces + threadIdx.x;
    Values gates[kPieces], ups[kPieces];
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
        const int64_t i = first + p * kThreads;
        if (i >= pieces) continue;
        const Places<kWidth> at(i, cols);
        gates[p] = Values::load(gate_up + at.gate);
        ups[p] = Values::load(gate_up + at.gate + cols);
    }
    float largest = 0.0f;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
        const int64_t i = first + p * kThreads;
        if (i >= pieces) continue;
        float out[kWidth];
        for (int j = 0; j < kWidth; ++j) {
            out[j] = gates[p][j] * sigmoid(gates[p][j]) * ups[p][j];
            largest = fmaxf(largest, fabsf(out[j]));
        }
        store_floats(out, h + i * kWidth);
    }
    give_amax<Element>(amax, largest);
}

template <int kWidth, typename Element>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(int64_t pieces, int64_t cols, const Element* dh, const Element* gate_up,
                    Element* dgate_up, float* amax) {
    using Values = Piece<Element, kWidth>;
    const int64_t first = int64_t{blockIdx.x} * kThreads * kPieces + threadIdx.x;
    Values gates[kPieces], ups[kPieces], gradients[kPieces];
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
        const int64_t i = first + p * kThreads;
        if (i >= pieces) continue;
        const Places<kWidth> at(i, cols);
        gates[p] = Values::load(gate_up + at.gate);
        ups[p] = Values::load(gate_up + at.gate + cols);
        gradients[p] = Values::load(dh + at.h);
    }
    float largest = 0.0f;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
        const int64_t i = first + p * kThreads;
        if (i >= pieces) continue;
        const Places<kWidth> at(i, cols);
        float d_gate[kWidth], d_up[kWidth];
        for (int j = 0; j < kWidth; ++j) {
            const float gate = gates[p][j], up = ups[p][j], gradient = gradients[p][j], s = sigmoid(gate);
            d_gate[j] = gradient * up * s * (1.0f + gate * (1.0f - s));
            d_up[j] = gradient * gate * s;
            largest = fmaxf(largest, fmaxf(fabsf(d_gate[j]), fabsf(d_up[j])));
        }
        store_floats(d_gate, dgate_up + at.gate);
        store_floats(d_up, dgate_up + at.gate + cols);
    }
    give_amax<Element>(amax, largest);
}

// Calls body(Constant<width>(), pieces, blocks) with how the elements of h are shared out.
template <typename Element, typename Body>
void with_pieces(const Tensor& h, std::initializer_list<const Element*> tensors, Body&& body) {
    with_width<Element>(fits_width<Element>(kPerAccess<Element>, h.cols(), tensors), [&](auto width) {
        const int64_t pieces = h.count() / width();
        require(width() == 1 || pieces < (int64_t{1} << 31), "swiglu: {} is too large", h.shape.str());
        body(width, pieces, static_cast<unsigned>(divide_up<int64_t>(pieces, kThreads * kPieces)));
    });
}

}  // namespace

void swiglu_forward(Context& context, const Tensor& gate_up, const Tensor& h, float* amax) {
    if (context.planning()) return;
    clear_amax(context, amax);
    with_elements(h, [&]<typename Element>(Element* out) {
        const auto* in = gate_up.as<Element>();
        with_pieces<Element>(h, {in, out}, [&](auto width, int64_t pieces, unsigned blocks) {
            launch(context, forward_kernel<width(), Element>, blocks, kThreads, 0, pieces, h.cols(), in, out,
                   amax);
        });
    });
}

void swiglu_backward(Context& context, const Tensor& dh, const Tensor& gate_up, const Tensor& dgate_up,
                     float* amax) {
    if (context.planning()) return;
    clear_amax(context, amax);
    with_elements(dgate_up, [&]<typename Element>(Element* out) {
        const auto *in = gate_up.as<Element>(), *gradient = dh.as<Element>();
        with_pieces<Element>(dh, {in, gradient, out}, [&](auto width, int64_t pieces, unsigned blocks) {
            launch(context, backward_kernel<width(), Element>, blocks, kThreads, 0, pieces, dh.cols(),
                   gradient, in, out, amax);
        });
    });
}

}  // namespace nibble::cuda
