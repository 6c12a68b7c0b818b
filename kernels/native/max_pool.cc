// The XLA handler of `max_pool`: maxima of windows that move over images.

#include "max_pool.h"

#include <algorithm>
#include <string>
#include <vector>

#include "handlers.h"
#include "parallel.h"

namespace jcompress {
namespace {

using Sizes = ffi::Span<const int64_t>;

// Below so many bytes of images waking a thread costs more than it gains.
constexpr int64_t kAlone = 256 << 10;
constexpr int64_t kPiece = 64 << 10;

const PoolKernels& pool_kernels() {
  switch (vectors_of(chosen_instructions())) {
#if defined(__x86_64__)
    case Instructions::kAvx2:
    case Instructions::kAvxVnni:
      return avx2_pool();
    case Instructions::kAvx512Vnni:
    case Instructions::kAvx512Vbmi:
      return avx512_vnni_pool();
#endif
    default:
      return generic_pool();
  }
}

ffi::Error bad(const std::string& what) {
  return ffi::Error::InvalidArgument("jcompress max_pool: " + what);
}

// The lines of an image that the window covers for each line of the result.
std::vector<std::vector<int64_t>> covered(Sizes data, const std::vector<int64_t>& out,
                                          Sizes window, Sizes strides, Sizes low) {
  std::vector<std::vector<int64_t>> lines = {{0}};
  for (size_t d = 0; d + 1 < data.size(); ++d) {
    std::vector<std::vector<int64_t>> next;
    for (const std::vector<int64_t>& before : lines) {
      for (int64_t i = 0; i < out[d]; ++i) {
        std::vector<int64_t> here;
        const int64_t start = i * strides[d] - low[d];
        const int64_t last = std::min(data[d], start + window[d]);
        for (int64_t line : before) {
          for (int64_t at = std::max<int64_t>(0, start); at < last; ++at) {
            here.push_back(line * data[d] + at);
          }
        }
        next.push_back(std::move(here));
      }
    }
    lines = std::move(next);
  }
  return lines;
}

ffi::Error max_pool(ffi::ThreadPool pool, Any x, ffi::Result<Any> y, Sizes window,
                    Sizes strides, Sizes low, Sizes high, int64_t layout) {
  if (layout != kLayout) return bad("the arrays have another layout than this library");
  const auto dims = x.dimensions();
  const bool floats = x.element_type() == ffi::DataType::F32;
  if (!floats && x.element_type() != ffi::DataType::S8) return bad("dtype of x");
  if (dims.size() < 3) return bad("x has images, positions and channels");
  const size_t rank = dims.size() - 2;
  for (const Sizes& one : {window, strides, low, high}) {
    if (one.size() != rank) return bad("ranks differ");
  }
  const Sizes data(&dims[1], rank);
  std::vector<int64_t> out, shape = {dims[0]};
  for (size_t d = 0; d < rank; ++d) {
    const bool within = low[d] >= 0 && high[d] >= 0 && low[d] < window[d] && high[d] < window[d];
    const int64_t rest = data[d] + low[d] + high[d] - window[d];
    if (window[d] < 1 || strides[d] < 1 || !within || rest < 0) return bad("window");
    out.push_back(rest / strides[d] + 1);
    shape.push_back(out.back());
  }
  const int64_t channels = dims[rank + 1];
  shape.push_back(channels);
  if (!is(*y, x.element_type(), shape)) return bad("shape or dtype of y");
  if (y->element_count() == 0) return ffi::Error::Success();

  expect_large(y->untyped_data(), y->size_bytes());
  const int64_t bytes = floats ? 4 : 1;
  const int64_t line_bytes = data[rank - 1] * channels * bytes;
  const auto lines = covered(data, out, window, strides, low);
  const int64_t out_lines = static_cast<int64_t>(lines.size());
  const int64_t image_bytes = static_cast<int64_t>(x.element_count()) / dims[0] * bytes;
  const int64_t all = dims[0] * out_lines, size = image_bytes * dims[0];
  const int64_t few = std::clamp<int64_t>(kPiece * all / std::max<int64_t>(1, size), 1, all);
  const auto kernel = floats ? pool_kernels().floats : pool_kernels().bytes;
  parallel_for(
      pool, (all + few - 1) / few,
      [&](int64_t piece) {
        std::vector<const char*> from;
        for (int64_t l = piece * few; l < std::min(all, (piece + 1) * few); ++l) {
          const char* image = static_cast<const char*>(x.untyped_data()) +
                              l / out_lines * image_bytes;
          from.clear();
          for (int64_t line : lines[l % out_lines]) from.push_back(image + line * line_bytes);
          char* to = static_cast<char*>(y->untyped_data()) + l * out.back() * channels * bytes;
          kernel({from.data(), static_cast<int64_t>(from.size()), to, out.back(),
                  data[rank - 1], window[rank - 1], strides[rank - 1], low[rank - 1],
                  channels});
        }
      },
      size < kAlone ? Help::kAwake : Help::kAny);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jcompress

extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_max_pool(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jcompress_max_pool, jcompress::max_pool,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<xla::ffi::Span<const int64_t>>("window")
                                  .Attr<xla::ffi::Span<const int64_t>>("strides")
                                  .Attr<xla::ffi::Span<const int64_t>>("low")
                                  .Attr<xla::ffi::Span<const int64_t>>("high")
                                  .Attr<int64_t>("layout"));
