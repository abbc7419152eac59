#include "gemm/tile_product.h"

#include <omp.h>

#include <dnnl.hpp>
#include <map>
#include <mutex>
#include <tuple>
#include <unordered_map>

namespace nibble {

namespace {

using Format = dnnl::memory::format_tag;

const dnnl::engine& engine() {
    static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
    return cpu;
}

dnnl::stream& stream() {
    thread_local dnnl::stream own(engine());
    return own;
}

// oneDNN plans for, and uses, as many threads as OpenMP offers: one, while this lives.
class OneThread {
  public:
    OneThread() : before_(omp_get_max_threads()) {
        if (before_ != 1) omp_set_num_threads(1);
    }
    ~OneThread() {
        if (before_ != 1) omp_set_num_threads(before_);
    }
    OneThread(const OneThread&) = delete;
    OneThread& operator=(const OneThread&) = delete;

  private:
    int before_;
};

dnnl::memory::data_type data_type(DType dtype) {
    return dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

dnnl::matmul::primitive_desc describe(const dnnl::memory::desc& a, const dnnl::memory::desc& b,
                                      const dnnl::memory::desc& c, const dnnl::primitive_attr& attributes) {
#if DNNL_VERSION_MAJOR >= 3
    return {engine(), a, b, c, attributes};
#else
    return {dnnl::matmul::desc(a, b, c), attributes, engine()};
#endif
}

bool has_isa(dnnl::cpu_isa isa) {
    // Each instruction set's value contains the bits of those it includes.
    const auto all = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
    const auto wanted = static_cast<unsigned>(isa);
    return (all & wanted) == wanted;
}

std::string isa_name() {
#if defined(__x86_64__) || defined(_M_X64)
    if (has_isa(dnnl::cpu_isa::avx512_core_amx)) return "amx";
    if (has_isa(dnnl::cpu_isa::avx512_core_bf16)) return "avx512_bf16";
    if (has_isa(dnnl::cpu_isa::avx512_core)) return "avx512";
    if (has_isa(dnnl::cpu_isa::avx2)) return "avx2";
    if (has_isa(dnnl::cpu_isa::avx)) return "avx";
    return "sse41";
#else
    return "native";
#endif
}

}  // namespace

DType bf16_product_dtype() {
#if defined(__x86_64__) || defined(_M_X64)
    static const bool has_bf16 = has_isa(dnnl::cpu_isa::avx512_core_bf16);
#else
    constexpr bool has_bf16 = false;
#endif
    return has_bf16 ? DType::bf16 : DType::f32;
}

std::string tile_product_description() {
    const dnnl_version_t* version = dnnl_version();
    return fmt::format("onednn {}.{}.{}, {} {}", version->major, version->minor, version->patch,
                       bf16_product_dtype() == DType::bf16 ? "bf16" : "f32", isa_name());
}

struct TileProduct::Impl {
    dnnl::matmul primitive;
    dnnl::memory::desc a, b, c, scratch;
    dnnl::memory::desc plain_b;
    dnnl::reorder packing;  // from plain_b to b
};

TileProduct::TileProduct(const TileShape& s, bool packed, const TileProduct* model) : impl_(new Impl) {
    require(s.operands == DType::f32 || bf16_product_dtype() == DType::bf16,
            "this CPU has no BF16 products; give F32 operands");
    const OneThread one;
    Impl& impl = *impl_;
    const auto operands = data_type(s.operands);
    impl.a = {{s.m, s.k}, operands, dnnl::memory::dims{s.a_m, s.a_k}};
    impl.plain_b = {{s.k, s.n}, operands, dnnl::memory::dims{s.b_k, s.b_n}};
    impl.c = {{s.m, s.n}, data_type(s.result), dnnl::memory::dims{s.c_m, 1}};
    impl.b = !packed            ? impl.plain_b
             : model != nullptr ? model->impl_->b
                                : dnnl::memory::desc({s.k, s.n}, operands, Format::any);

    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (s.accumulate) {
        dnnl::post_ops sum;
        sum.append_sum(1.0f);
        attributes.set_post_ops(sum);
    }
    const auto description = describe(impl.a, impl.b, impl.c, attributes);
    impl.b = description.weights_desc();
    impl.scratch = description.scratchpad_desc();
    impl.primitive = dnnl::matmul(description);
    if (packed) {
        dnnl::primitive_attr own_scratch;
        own_scratch.set_scratchpad_mode(dnnl::scratchpad_mode::library);
        const dnnl::reorder::primitive_desc reorder(engine(), impl.plain_b, engine(), impl.b, own_scratch);
        impl.packing = dnnl::reorder(reorder);
    }
}

TileProduct::~TileProduct() = default;

const TileProduct& TileProduct::get(const TileShape& shape, bool packed, const TileProduct* model) {
    using Key = std::tuple<TileShape, bool, const TileProduct*>;
    static std::mutex mutex;
    static std::map<Key, std::unique_ptr<TileProduct>> products;
    const std::lock_guard lock(mutex);
    auto& product = products[Key(shape, packed, model)];
    if (!product) {
        try {
            product.reset(new TileProduct(shape, packed, model));
        } catch (const dnnl::error& error) {
            fail("oneDNN cannot multiply [{}, {}] by [{}, {}] ({} operands): {}", shape.m, shape.k, shape.k,
                 shape.n, name_of(shape.operands), error.message);
        }
    }
    return *product;
}

const TileProduct& TileProduct::get(const TileShape& shape) { return get(shape, false, nullptr); }
const TileProduct& TileProduct::get_packed(const TileShape& shape, const TileProduct* model) {
    return get(shape, true, model);
}

size_t TileProduct::scratch_bytes() const { return impl_->scratch.get_size(); }
size_t TileProduct::packed_bytes() const { return impl_->b.get_size(); }

void TileProduct::pack(const void* b, void* packed) const {
    const OneThread one;
    dnnl::memory from(impl_->plain_b, engine(), const_cast<void*>(b));
    dnnl::memory to(impl_->b, engine(), packed);
    impl_->packing.execute(stream(), from, to);
}

namespace {

// The library's view of the four tensors of a call. Making one costs as much as a small product, so each
// thread keeps one for each product.
struct Call {
    dnnl::memory a, b, c, scratch;
    std::unordered_map<int, dnnl::memory> arguments;
};

void point(dnnl::memory& memory, const void* data) {
    if (memory.get_data_handle() != data) memory.set_data_handle(const_cast<void*>(data));
}

}  // namespace

void TileProduct::run(const void* a, const void* b, void* c, void* scratch) const {
    const OneThread one;
    thread_local std::unordered_map<const TileProduct*, Call> calls;
    Call& call = calls[this];
    if (call.arguments.empty()) {
        const auto view = [](const dnnl::memory::desc& desc, const void* data) {
            return dnnl::memory(desc, engine(), const_cast<void*>(data));
        };
        call = {view(impl_->a, a), view(impl_->b, b), view(impl_->c, c), view(impl_->scratch, scratch), {}};
        call.arguments = {{DNNL_ARG_SRC, call.a},
                          {DNNL_ARG_WEIGHTS, call.b},
                          {DNNL_ARG_DST, call.c},
                          {DNNL_ARG_SCRATCHPAD, call.scratch}};
    }
    point(call.a, a);
    point(call.b, b);
    point(call.c, c);
    point(call.scratch, scratch);
    impl_->primitive.execute(stream(), call.arguments);
}

}  // namespace nibble
