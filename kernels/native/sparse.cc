// The XLA handlers of products with sparse and clustered weights:
// `block_sparse_matmul`, `nm_sparse_matmul`, `unstructured_sparse_matmul`,
// `codebook_matmul` and `vector_codebook_matmul`.

#include "sparse.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "floats.h"
#include "handlers.h"
#include "parallel.h"

namespace jcompress {
namespace {

using Dims = std::vector<int64_t>;

// Below so many products a piece is not worth a thread.
constexpr int64_t kPieceProducts = 1 << 18;
constexpr int64_t kPiecesPerThread = 8;

const SparseProducts& sparse_products() {
  switch (vectors_of(chosen_instructions())) {
#if defined(__x86_64__)
    case Instructions::kAvx2:
    case Instructions::kAvxVnni:
      return *avx2_sparse_products();
    case Instructions::kAvx512Vnni:
      return *avx512_vnni_sparse_products();
    case Instructions::kAvx512Vbmi:
      return *avx512_vbmi_sparse_products();
#endif
    default:
      return *generic_sparse_products();
  }
}

bool stored_of(ffi::DataType dtype, Float* out) {
  *out = Float::kS8;
  return dtype == ffi::DataType::S8 ||
         (dtype != ffi::DataType::F16 && float_of(dtype, out));
}

int64_t size_of(Float dtype) {
  return dtype == Float::kF32 ? 4 : dtype == Float::kS8 ? 1 : 2;
}

// Activations and results, which all three operations share.
struct Call {
  int64_t stacks, rows, inputs, outputs;
  Float x_dtype, y_dtype;
  const Any& x;
  ffi::Result<Any>& y;

  std::string check(int64_t layout) const {
    if (layout != kLayout) return "the arrays have another layout than this library";
    if (!is(*y, x.element_type(), {stacks, rows, outputs})) return "result";
    return "";
  }
  Inputs inputs_of(int64_t stack) const {
    const char* at = part<char>(x, stack, rows * inputs, size_of(x_dtype));
    return {at, x_dtype, rows, inputs};
  }
  Result result_of(int64_t stack) const {
    char* all = static_cast<char*>(y->untyped_data());
    return {all + stack * rows * outputs * size_of(y_dtype), y_dtype, nullptr};
  }
};

bool has_stacks_of_matrices(const Any& a) { return a.dimensions().size() == 3; }

Call call_of(const Any& x, ffi::Result<Any>& y, int64_t outputs) {
  const auto dims = x.dimensions();
  Call call{dims[0], dims[1], dims[2], outputs, Float::kF32, Float::kF32, x, y};
  float_of(x.element_type(), &call.x_dtype);
  call.y_dtype = call.x_dtype;
  return call;
}

ffi::Error bad(const char* operation, const std::string& what) {
  return ffi::Error::InvalidArgument(std::string("jcompress ") + operation + ": " +
                                     what);
}

// Multiply a stack of coded weights; `weight(s)` gives one, `inputs(s)` its rows.
template <class WeightOf, class InputsOf>
ffi::Error multiply_coded(ffi::ThreadPool& pool, const Call& call, WeightOf weight,
                          InputsOf inputs, const char* operation) {
  const SparseProducts& products = sparse_products();
  const int64_t size = (products.coded_size(weight(0), call.rows) + 15) / 16 * 16;
  Buffer<float> packed(call.stacks * size);
  const int64_t pieces = products.coded_pieces(weight(0), call.rows);
  parallel_for(pool, call.stacks * pieces, [&](int64_t i) {
    const int64_t s = i / pieces;
    products.pack_coded(weight(s), inputs(s), packed.data() + s * size,
                        i % pieces);
  });
  const int64_t least = kPieceProducts / std::max<int64_t>(1, call.rows * call.inputs);
  const int64_t share = call.outputs / (kPiecesPerThread * pool.num_threads());
  const int64_t chunk = (std::max({least, share, int64_t{1}}) + 15) / 16 * 16;
  const int64_t chunks = (call.outputs + chunk - 1) / chunk;
  std::atomic<bool> good{true};
  parallel_for(pool, call.stacks * chunks, [&](int64_t i) {
    const int64_t s = i / chunks, first = i % chunks * chunk;
    if (!products.multiply_coded(weight(s), packed.data() + s * size, call.rows,
                                 call.result_of(s), first,
                                 std::min(call.outputs, first + chunk))) {
      good.store(false, std::memory_order_relaxed);
    }
  });
  if (!good.load()) return bad(operation, "a row of mask keeps more than values has");
  return ffi::Error::Success();
}

Coding masked(Float stored) {
  if (stored == Float::kF32) return Coding::kMaskF32;
  return stored == Float::kBF16 ? Coding::kMaskBF16 : Coding::kMaskS8;
}

// Where the stored parts of a matrix begin: each row a run within all that is stored.
bool rising(const int32_t* starts, int64_t rows, int64_t count) {
  bool good = starts[0] >= 0 && starts[rows] <= count;
  for (int64_t r = 0; r < rows; ++r) good = good && starts[r] <= starts[r + 1];
  return good;
}

ffi::Error nm_sparse(ffi::ThreadPool pool, Any x, Any values, Any mask, Any scales,
                     ffi::Result<Any> y, int64_t layout) {
  const char* name = "nm_sparse_matmul";
  if (!has_stacks_of_matrices(x) || !has_stacks_of_matrices(values)) {
    return bad(name, "x and values have three axes");
  }
  const int64_t outputs = values.dimensions()[1], stored = values.dimensions()[2];
  const Call call = call_of(x, y, outputs);
  Float dtype;
  if (!float_of(x.element_type(), &dtype)) return bad(name, "dtype of x");
  if (!stored_of(values.element_type(), &dtype)) return bad(name, "dtype of values");
  const std::string problem = call.check(layout);
  if (!problem.empty()) return bad(name, problem);
  CodedWeight w{};
  w.coding = masked(dtype);
  w.outputs = outputs;
  w.inputs = call.inputs;
  w.stored = stored;
  w.count = outputs * stored;
  w.outputs_per_table = 1;
  if (!is(values, values.element_type(), {call.stacks, outputs, stored})) {
    return bad(name, "shape of values");
  }
  if (!is(mask, ffi::DataType::U8, {call.stacks, outputs, w.mask_bytes()})) {
    return bad(name, "mask");
  }
  if (scales.element_count() != 0 &&
      !is(scales, ffi::DataType::F32, {call.stacks, outputs, 1})) {
    return bad(name, "scales");
  }
  if (y->element_count() == 0) return ffi::Error::Success();
  if (call.inputs < 1 || stored < 1) return bad(name, "there are no inputs");
  const auto weight = [&](int64_t s) {
    CodedWeight one = w;
    one.values = part<char>(values, s, outputs * stored, size_of(dtype));
    one.mask = part<uint8_t>(mask, s, outputs * w.mask_bytes());
    one.scales = part<float>(scales, s, outputs);
    return one;
  };
  const auto inputs = [&](int64_t s) { return call.inputs_of(s); };
  return multiply_coded(pool, call, weight, inputs, name);
}

ffi::Error unstructured_sparse(ffi::ThreadPool pool, Any x, Any values, Any mask,
                               Any starts, Any scales, ffi::Result<Any> y,
                               int64_t layout) {
  const char* name = "unstructured_sparse_matmul";
  if (!has_stacks_of_matrices(x) || values.dimensions().size() != 2 ||
      starts.dimensions().size() != 2) {
    return bad(name, "x has three axes, values and starts two");
  }
  const bool nibbles = values.element_type() == ffi::DataType::U8;
  const int64_t outputs = starts.dimensions()[1] - 1, size = values.dimensions()[1];
  const int64_t count = nibbles ? 2 * size : size;
  const Call call = call_of(x, y, outputs);
  Float dtype;
  if (!float_of(x.element_type(), &dtype)) return bad(name, "dtype of x");
  if (nibbles) {
    dtype = Float::kS8;
  } else if (!stored_of(values.element_type(), &dtype)) {
    return bad(name, "dtype of values");
  }
  const std::string problem = call.check(layout);
  if (!problem.empty()) return bad(name, problem);
  if (!is(values, values.element_type(), {call.stacks, size})) {
    return bad(name, "shape of values");
  }
  if (!is(starts, ffi::DataType::S32, {call.stacks, outputs + 1})) {
    return bad(name, "starts");
  }
  CodedWeight w{};
  w.coding = masked(dtype);
  w.outputs = outputs;
  w.inputs = call.inputs;
  w.count = count;
  w.outputs_per_table = 1;
  if (!is(mask, ffi::DataType::U8, {call.stacks, outputs, w.mask_bytes()})) {
    return bad(name, "mask");
  }
  w.groups = 1;
  if (scales.element_count() != 0) {
    const auto dims = scales.dimensions();
    w.groups = dims.size() == 3 ? dims[2] : 0;
    if (w.groups < 1 || call.inputs % w.groups || dtype != Float::kS8 ||
        !is(scales, ffi::DataType::F32, {call.stacks, outputs, w.groups})) {
      return bad(name, "scales");
    }
  } else if (nibbles && outputs) {
    return bad(name, "integers of 4 bits have scales");
  }
  w.bits_kept = nibbles ? 4 : 8;
  if (nibbles || w.groups > 1) w.coding = Coding::kMaskScaled;
  if (y->element_count() == 0) return ffi::Error::Success();
  if (call.inputs < 1 || count < 1) return bad(name, "there are no inputs");
  w.stored = (count + outputs - 1) / outputs;
  const auto weight = [&](int64_t s) {
    CodedWeight one = w;
    one.values = part<char>(values, s, size, size_of(dtype));
    one.mask = part<uint8_t>(mask, s, outputs * w.mask_bytes());
    one.starts = part<int32_t>(starts, s, outputs + 1);
    one.scales = part<float>(scales, s, outputs * w.groups);
    return one;
  };
  for (int64_t s = 0; s < call.stacks; ++s) {
    if (!rising(weight(s).starts, outputs, count)) {
      return bad(name, "starts does not rise from 0 to the number of values at most");
    }
  }
  const auto inputs = [&](int64_t s) { return call.inputs_of(s); };
  return multiply_coded(pool, call, weight, inputs, name);
}

ffi::Error codebook(ffi::ThreadPool pool, Any x, Any indices, Any tables,
                    ffi::Result<Any> y, int64_t layout) {
  const char* name = "codebook_matmul";
  if (!has_stacks_of_matrices(x) || !has_stacks_of_matrices(indices) ||
      !has_stacks_of_matrices(tables)) {
    return bad(name, "the arrays have three axes");
  }
  const int64_t outputs = indices.dimensions()[1], count = tables.dimensions()[1];
  const int64_t values = tables.dimensions()[2];
  const Call call = call_of(x, y, outputs);
  Float dtype;
  if (!float_of(x.element_type(), &dtype)) return bad(name, "dtype of x");
  const std::string problem = call.check(layout);
  if (!problem.empty()) return bad(name, problem);
  if (y->element_count() == 0) return ffi::Error::Success();
  if (call.inputs < 1) return bad(name, "there are no inputs");
  const bool wide = values <= CodedWeight::kTable && outputs >= 1;
  if (values < 1 || !wide || count < 1 || outputs % count ||
      !is(tables, ffi::DataType::F32, {call.stacks, count, values})) {
    return bad(name, "codebook");
  }
  CodedWeight w{};
  const bool small = values <= CodedWeight::kSmallTable;
  w.coding = small ? Coding::kNibbles : Coding::kBytes;
  w.outputs = outputs;
  w.inputs = call.inputs;
  w.stored = small ? (call.inputs + 1) / 2 : call.inputs;
  w.outputs_per_table = outputs / count;
  if (!is(indices, ffi::DataType::U8, {call.stacks, outputs, w.stored})) {
    return bad(name, "indices");
  }
  // Tables in which every index that can be written has a value: the last one goes on.
  const int64_t floats = w.table_floats();
  Buffer<float> laid(call.stacks * count * floats);
  Buffer<float> whole(floats);
  for (int64_t i = 0; i < call.stacks * count; ++i) {
    const float* from = part<float>(tables, i, values);
    std::copy(from, from + values, whole.data());
    std::fill(whole.data() + values, whole.data() + floats, from[values - 1]);
    sparse_products().lay_table(whole.data(), floats, laid.data() + i * floats);
  }
  const auto weight = [&](int64_t s) {
    CodedWeight one = w;
    one.values = part<uint8_t>(indices, s, outputs * w.stored);
    one.tables = laid.data() + s * count * floats;
    return one;
  };
  const auto inputs = [&](int64_t s) { return call.inputs_of(s); };
  return multiply_coded(pool, call, weight, inputs, name);
}

// Rows of floats with room between vectors: those shorter than a power of 2 are filled
// up with zeros, and so are the inputs to whole steps.
void spread_rows(const Inputs& x, int64_t length, int64_t laid, int64_t inputs,
                 float* out) {
  Buffer<float> row(x.inputs);
  std::fill(out, out + x.rows * inputs, 0.0f);
  for (int64_t m = 0; m < x.rows; ++m, out += inputs) {
    widen(x.x, x.dtype, m * x.inputs, x.inputs, row.data());
    for (int64_t k = 0, at = 0; k < x.inputs; k += length, at += laid) {
      std::copy_n(row.data() + k, std::min(length, x.inputs - k), out + at);
    }
  }
}

ffi::Error vector_codebook(ffi::ThreadPool pool, Any x, Any codes, Any tables,
                           Any scales, ffi::Result<Any> y, int64_t layout) {
  const char* name = "vector_codebook_matmul";
  if (!has_stacks_of_matrices(x) || codes.dimensions().size() != 4 ||
      tables.dimensions().size() != 4) {
    return bad(name, "x has three axes, codes and tables have four");
  }
  const int64_t outputs = codes.dimensions()[1], count = codes.dimensions()[2];
  const int64_t size = tables.dimensions()[2], length = tables.dimensions()[3];
  const Call call = call_of(x, y, outputs);
  Float dtype;
  if (!float_of(x.element_type(), &dtype)) return bad(name, "dtype of x");
  const std::string problem = call.check(layout);
  if (!problem.empty()) return bad(name, problem);
  if (y->element_count() == 0) return ffi::Error::Success();
  if (call.inputs < 1) return bad(name, "there are no inputs");
  CodedWeight w{};
  while (w.bits < 8 && (int64_t{1} << w.bits) < size) ++w.bits;
  if (w.bits < 1 || (int64_t{1} << w.bits) != size || length < 1 || length > 8 ||
      count < 1 || count > 4 ||
      !is(tables, ffi::DataType::F32, {call.stacks, count, size, length})) {
    return bad(name, "tables");
  }
  constexpr int64_t kTogether = 8;
  const int64_t steps =
      (call.inputs + length * kTogether - 1) / (length * kTogether);
  w.coding = Coding::kVectors;
  w.length = length <= 2 ? 2 : length <= 4 ? 4 : 8;
  w.codes = static_cast<int32_t>(count);
  w.outputs = outputs;
  w.inputs = steps * kTogether * w.length;
  w.stored = count * steps * w.bits;
  w.outputs_per_table = outputs;
  if (!is(codes, ffi::DataType::U8, {call.stacks, outputs, count, steps * w.bits})) {
    return bad(name, "codes");
  }
  if (!is(scales, ffi::DataType::F32, {call.stacks, outputs, 1})) {
    return bad(name, "scales");
  }
  const int64_t entries = call.stacks * count * size;
  Buffer<float> laid(entries * w.length);
  std::fill_n(laid.data(), entries * w.length, 0.0f);
  for (int64_t i = 0; i < entries; ++i) {
    std::copy_n(part<float>(tables, i, length), length, laid.data() + i * w.length);
  }
  Buffer<float> rows(call.stacks * call.rows * w.inputs);
  Call spread = call;
  spread.inputs = w.inputs;
  for (int64_t s = 0; s < call.stacks; ++s) {
    spread_rows(call.inputs_of(s), length, w.length, w.inputs,
                rows.data() + s * call.rows * w.inputs);
  }
  const auto weight = [&](int64_t s) {
    CodedWeight one = w;
    one.values = part<uint8_t>(codes, s, outputs * w.stored);
    one.tables = laid.data() + s * count * size * w.length;
    one.scales = part<float>(scales, s, outputs);
    return one;
  };
  const auto inputs = [&](int64_t s) {
    return Inputs{rows.data() + s * call.rows * w.inputs, Float::kF32, call.rows,
                  w.inputs};
  };
  return multiply_coded(pool, spread, weight, inputs, name);
}

bool within(const int32_t* columns, int64_t first, int64_t last, int64_t count) {
  uint32_t most = 0;
  for (int64_t b = first; b < last; ++b) {
    most = std::max(most, static_cast<uint32_t>(columns[b]));
  }
  return static_cast<int64_t>(most) < count;
}

ffi::Error block_sparse(ffi::ThreadPool pool, Any x, Any blocks, Any columns,
                        Any starts, Any scales, ffi::Result<Any> y, int64_t layout) {
  const char* name = "block_sparse_matmul";
  const auto dims = blocks.dimensions();
  if (!has_stacks_of_matrices(x) || dims.size() != 4 ||
      starts.dimensions().size() != 2) {
    return bad(name, "x has three axes, blocks four, starts two");
  }
  BlockWeight w{};
  const int64_t count = dims[1];
  w.high = dims[2];
  w.wide = dims[3];
  w.block_rows = starts.dimensions()[1] - 1;
  const Call call = call_of(x, y, w.block_rows * w.high);
  w.inputs = call.inputs;
  Float dtype;
  if (!float_of(x.element_type(), &dtype)) return bad(name, "dtype of x");
  if (!stored_of(blocks.element_type(), &w.dtype)) return bad(name, "dtype of blocks");
  const std::string problem = call.check(layout);
  if (!problem.empty()) return bad(name, problem);
  if (dims[0] != call.stacks || w.wide < 1 || w.high < 1 || w.inputs % w.wide) {
    return bad(name, "shape of blocks");
  }
  if (!is(columns, ffi::DataType::S32, {call.stacks, count})) {
    return bad(name, "columns");
  }
  if (!is(starts, ffi::DataType::S32, {call.stacks, w.block_rows + 1})) {
    return bad(name, "starts");
  }
  if (scales.element_count() != 0 &&
      !is(scales, ffi::DataType::F32, {call.stacks, w.outputs(), 1})) {
    return bad(name, "scales");
  }
  if (y->element_count() == 0) return ffi::Error::Success();
  const auto weight = [&](int64_t s) {
    BlockWeight one = w;
    one.blocks = part<char>(blocks, s, count * w.high * w.wide, size_of(w.dtype));
    one.columns = part<int32_t>(columns, s, count);
    one.starts = part<int32_t>(starts, s, w.block_rows + 1);
    one.scales = part<float>(scales, s, w.outputs());
    return one;
  };
  for (int64_t s = 0; s < call.stacks; ++s) {
    if (!rising(weight(s).starts, w.block_rows, count)) {
      return bad(name, "starts does not rise from 0 to the number of blocks at most");
    }
  }

  const SparseProducts& products = sparse_products();
  const int64_t size = (products.blocks_size(w, call.rows) + 15) / 16 * 16;
  Buffer<float> packed(call.stacks * size);
  const int64_t packing = products.blocks_pieces(w, call.rows);
  parallel_for(pool, call.stacks * packing, [&](int64_t i) {
    const int64_t s = i / packing;
    products.pack_blocks(weight(s), call.inputs_of(s), packed.data() + s * size,
                         i % packing);
  });

  // Pieces of about as many blocks each; a row of blocks costs like one block more.
  const int64_t products_of_all = count * w.high * w.wide * call.rows;
  const int64_t most =
      std::min<int64_t>(w.block_rows, kPiecesPerThread * pool.num_threads());
  const int64_t pieces =
      std::clamp<int64_t>(products_of_all / kPieceProducts, 1, most);
  std::atomic<bool> good{true};
  parallel_for(pool, call.stacks * pieces, [&](int64_t i) {
    const int64_t s = i / pieces, piece = i % pieces;
    const BlockWeight one = weight(s);
    const int64_t base = one.starts[0];
    const int64_t work = one.starts[w.block_rows] - base + w.block_rows;
    const auto row_of = [&](int64_t number) {
      const int64_t before = work * number / pieces;
      int64_t low = 0, high = w.block_rows;
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (one.starts[middle] - base + middle < before) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      return low;
    };
    const int64_t first = row_of(piece);
    const int64_t last = piece + 1 == pieces ? w.block_rows : row_of(piece + 1);
    if (first >= last) return;
    if (!within(one.columns, one.starts[first], one.starts[last], w.inputs / w.wide)) {
      good.store(false, std::memory_order_relaxed);
      return;
    }
    products.multiply_blocks(one, packed.data() + s * size, call.rows,
                             call.result_of(s), first, last);
  });
  if (!good.load()) return bad(name, "a number in columns is none of a block column");
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jcompress

extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_nm_sparse(XLA_FFI_CallFrame*);
extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_unstructured_sparse(
    XLA_FFI_CallFrame*);
extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_codebook(XLA_FFI_CallFrame*);
extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_vector_codebook(
    XLA_FFI_CallFrame*);
extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_block_sparse(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jcompress_nm_sparse, jcompress::nm_sparse,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("layout"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jcompress_unstructured_sparse,
                              jcompress::unstructured_sparse,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("layout"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jcompress_codebook, jcompress::codebook,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("layout"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jcompress_vector_codebook, jcompress::vector_codebook,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("layout"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jcompress_block_sparse, jcompress::block_sparse,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("layout"));
