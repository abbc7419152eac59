// Tensor: a view of contiguous, row-major memory that somebody else owns (an Arena, a Buffer, a mapped file).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "numerics/bf16.h"

namespace nibble {

enum class Device : uint8_t { cpu, cuda };
// "cpu", "cuda": the words of a configuration.
constexpr std::string_view name_of(Device device) { return device == Device::cpu ? "cpu" : "cuda"; }

// Of all memory that tensors begin in: a cache line here, what the libraries of a GPU ask for there.
constexpr size_t alignment_of(Device device) { return device == Device::cpu ? 64 : 256; }

enum class DType : uint8_t { f32, bf16, f16, f64, u8, i8, u16, i32, u32, i64, boolean, e4m3, e5m2, e8m0 };

constexpr size_t size_of(DType dtype) {
    switch (dtype) {
        case DType::f64:
        case DType::i64:
            return 8;
        case DType::f32:
        case DType::i32:
        case DType::u32:
            return 4;
        case DType::bf16:
        case DType::f16:
        case DType::u16:
            return 2;
        default:
            return 1;
    }
}

// The safetensors name.
constexpr std::string_view name_of(DType dtype) {
    switch (dtype) {
        case DType::f32:
            return "F32";
        case DType::bf16:
            return "BF16";
        case DType::f16:
            return "F16";
        case DType::f64:
            return "F64";
        case DType::u8:
            return "U8";
        case DType::i8:
            return "I8";
        case DType::u16:
            return "U16";
        case DType::i32:
            return "I32";
        case DType::u32:
            return "U32";
        case DType::i64:
            return "I64";
        case DType::boolean:
            return "BOOL";
        case DType::e4m3:
            return "F8_E4M3";
        case DType::e5m2:
            return "F8_E5M2";
        case DType::e8m0:
            return "F8_E8M0";
    }
    return "?";
}

template <typename T>
inline constexpr DType kDTypeOf = [] {
    static_assert(sizeof(T) == 0, "no DType for this C++ type");
    return DType::u8;
}();
template <>
inline constexpr DType kDTypeOf<float> = DType::f32;
template <>
inline constexpr DType kDTypeOf<double> = DType::f64;
template <>
inline constexpr DType kDTypeOf<Bf16> = DType::bf16;
template <>
inline constexpr DType kDTypeOf<uint8_t> = DType::u8;
template <>
inline constexpr DType kDTypeOf<int8_t> = DType::i8;
template <>
inline constexpr DType kDTypeOf<uint16_t> = DType::u16;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::i32;
template <>
inline constexpr DType kDTypeOf<uint32_t> = DType::u32;
template <>
inline constexpr DType kDTypeOf<int64_t> = DType::i64;

// Up to four dimensions. A default-constructed shape is a scalar: no dimensions, one element.
class Shape {
  public:
    static constexpr int kMaxRank = 4;

    Shape() = default;
    Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
    explicit Shape(std::span<const int64_t> dims);

    int rank() const { return rank_; }
    int64_t operator[](int axis) const { return dims_[axis]; }
    int64_t count() const;
    int64_t last() const { return rank_ == 0 ? 1 : dims_[rank_ - 1]; }
    std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }
    std::string str() const;  // "[128, 256]"
    friend bool operator==(const Shape&, const Shape&) = default;

  private:
    std::array<int64_t, kMaxRank> dims_{};
    int rank_ = 0;
};

struct Tensor {
    void* data = nullptr;
    DType dtype = DType::f32;
    Device device = Device::cpu;
    Shape shape;

    int64_t count() const { return shape.count(); }
    size_t bytes() const { return static_cast<size_t>(count()) * size_of(dtype); }
    // The tensor as a matrix: the last dimension is the columns, all others together are the rows.
    int64_t cols() const { return shape.last(); }
    int64_t rows() const { return cols() == 0 ? 0 : count() / cols(); }

    // Elements as T. Throws if the dtype is another one.
    template <typename T>
    T* as() const {
        require(dtype == kDTypeOf<std::remove_const_t<T>>, "a {} tensor was read as {}", name_of(dtype),
                name_of(kDTypeOf<std::remove_const_t<T>>));
        return static_cast<T*>(data);
    }
    template <typename T>
    std::span<T> span() const {
        return {as<T>(), static_cast<size_t>(count())};
    }

    // The same memory under another shape of the same count.
    Tensor reshaped(Shape new_shape) const;
    // Rows [begin, end) of the first dimension.
    Tensor slice(int64_t begin, int64_t end) const;
};

// Calls body with the elements of x, F32 or BF16: a float* or a Bf16*.
template <typename Body>
void with_elements(const Tensor& x, Body&& body) {
    if (x.dtype == DType::bf16) {
        body(x.as<Bf16>());
    } else {
        body(x.as<float>());
    }
}

// Owns zero-initialised memory of a device, aligned to alignment_of(), and lends it as tensors. Throws
// Error when there is not enough, or no such device.
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t bytes, Device device = Device::cpu);
    Buffer(DType dtype, Shape shape, Device device = Device::cpu);

    std::byte* data() const { return data_.get(); }
    size_t bytes() const { return bytes_; }
    Tensor tensor() const { return {data_.get(), dtype_, data_.get_deleter().device, shape_}; }

  private:
    struct Free {
        Device device;
        void operator()(std::byte* p) const;
    };
    std::unique_ptr<std::byte[], Free> data_;
    size_t bytes_ = 0;
    DType dtype_ = DType::u8;
    Shape shape_{0};
};

// A CPU tensor over the elements of a vector (the vector must outlive the view).
template <typename T>
Tensor view_of(std::vector<T>& values, Shape shape) {
    require(shape.count() == static_cast<int64_t>(values.size()), "{} values do not fill shape {}",
            values.size(), shape.str());
    return {values.data(), kDTypeOf<T>, Device::cpu, shape};
}

}  // namespace nibble
