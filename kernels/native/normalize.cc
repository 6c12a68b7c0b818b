// The XLA handler of `normalize`: layer and RMS normalisation.

#include <algorithm>
#include <string>

#include "handlers.h"
#include "normalize.h"
#include "parallel.h"

namespace jcompress {
namespace {

// Below so many numbers waking a thread costs more than it gains.
constexpr int64_t kAlone = 32 << 10;
constexpr int64_t kPiece = 8 << 10;

NormalizeRows normalize_kernel() {
  switch (vectors_of(chosen_instructions())) {
#if defined(__x86_64__)
    case Instructions::kAvx2:
    case Instructions::kAvxVnni:
      return avx2_normalize();
    case Instructions::kAvx512Vnni:
    case Instructions::kAvx512Vbmi:
      return avx512_vnni_normalize();
#endif
    default:
      return generic_normalize();
  }
}

ffi::Error bad(const std::string& what) {
  return ffi::Error::InvalidArgument("jcompress normalize: " + what);
}

bool like(const Any& a, const Any& b) {
  const auto one = a.dimensions(), other = b.dimensions();
  return a.element_type() == ffi::DataType::F32 && one.size() == other.size() &&
         std::equal(one.begin(), one.end(), other.begin());
}

ffi::Error normalize(ffi::ThreadPool pool, Any x, Any residual, Any scale, Any bias,
                     ffi::Result<Any> y, ffi::Result<Any> sum, float epsilon,
                     bool centered, int64_t layout) {
  if (layout != kLayout) return bad("the arrays have another layout than this library");
  if (x.dimensions().size() < 1) return bad("x has no axis");
  const int64_t width = x.dimensions().back();
  if (width < 1 || !like(x, x) || !like(*y, x)) return bad("shape or dtype of x or y");
  for (const Any& one : {scale, bias}) {
    if (!absent(one) && !is(one, ffi::DataType::F32, {width})) return bad("scale or bias");
  }
  if (!absent(residual) && !like(residual, x)) return bad("residual");
  if (!absent(*sum) && (absent(residual) || !like(*sum, x))) return bad("sum");
  if (x.element_count() == 0) return ffi::Error::Success();
  Normalization n{};
  n.x = part<float>(x, 0, 0);
  n.residual = part<float>(residual, 0, 0);
  n.scale = part<float>(scale, 0, 0);
  n.bias = part<float>(bias, 0, 0);
  n.y = static_cast<float*>(y->untyped_data());
  n.sum = absent(*sum) ? nullptr : static_cast<float*>(sum->untyped_data());
  n.width = width;
  n.epsilon = epsilon;
  n.centered = centered;
  const int64_t rows = x.element_count() / width;
  const int64_t piece = std::max<int64_t>(1, kPiece / width);
  const NormalizeRows kernel = normalize_kernel();
  parallel_for(
      pool, (rows + piece - 1) / piece,
      [&](int64_t i) { kernel(n, i * piece, std::min(rows, (i + 1) * piece)); },
      static_cast<int64_t>(x.element_count()) < kAlone ? Help::kAwake : Help::kAny);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jcompress

extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_normalize(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jcompress_normalize, jcompress::normalize,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<float>("epsilon")
                                  .Attr<bool>("centered")
                                  .Attr<int64_t>("layout"));
