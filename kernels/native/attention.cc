// The XLA handler of attention: finds the roles and steps of all axes, and spreads heads
// and rows of queries over the threads.

#include "attention.h"

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "handlers.h"
#include "parallel.h"

namespace jcompress {
namespace {

// Below so many products a call is not worth a second thread.
constexpr int64_t kAlone = 1 << 18;

const AttentionKernels& attention_kernels() {
  switch (vectors_of(chosen_instructions())) {
#if defined(__x86_64__)
    case Instructions::kAvx2:
    case Instructions::kAvxVnni:
      return *avx2_attention();
    case Instructions::kAvx512Vnni:
    case Instructions::kAvx512Vbmi:
      return *avx512_vnni_attention();
#endif
    default:
      return *generic_attention();
  }
}

ffi::Error bad_attention(const std::string& what) {
  return ffi::Error::InvalidArgument("jcompress attention: " + what);
}

enum Operand { kQ, kK, kV, kBias, kMask, kOut, kOperands };

// An axis of the problem: its size and the step of each operand along it.
struct Axis {
  char letter;
  int64_t size = 1;
  std::array<int64_t, kOperands> step{};
};

// Axes of which each combination of indices is a place in every operand.
struct Axes {
  std::vector<Axis> all;

  int64_t count() const {
    int64_t product = 1;
    for (const Axis& axis : all) product *= axis.size;
    return product;
  }
  // Add to `at` the offsets of place `index`, the last axis running fastest.
  void add_offsets(int64_t index, std::array<int64_t, kOperands>& at) const {
    for (size_t n = all.size(); n-- > 0;) {
      const Axis& axis = all[n];
      // A division takes longer than all the rest, and the first axis needs none.
      const int64_t here = n == 0 ? index : index % axis.size;
      if (n > 0) index /= axis.size;
      for (int i = 0; i < kOperands; ++i) at[i] += here * axis.step[i];
    }
  }
};

// The letters of each operand: "q,k,v[,bias][,mask]->out".
bool letters_of(std::string_view axes, bool bias, bool mask,
                std::array<std::string_view, kOperands>& letters) {
  const size_t arrow = axes.find("->");
  if (arrow == axes.npos) return false;
  letters[kOut] = axes.substr(arrow + 2);
  axes = axes.substr(0, arrow);
  for (int i = kQ; i < kOut; ++i) {
    if ((i == kBias && !bias) || (i == kMask && !mask)) continue;
    if (axes.data() == nullptr) return false;
    const size_t comma = axes.find(',');
    letters[i] = axes.substr(0, comma);
    axes = comma == axes.npos ? std::string_view() : axes.substr(comma + 1);
  }
  return axes.data() == nullptr;
}

// Put an operand's axes with those of the others; false if sizes do not fit.
bool add_axes(Operand operand, std::string_view letters, const Any& array,
              std::vector<Axis>& axes) {
  const auto dims = array.dimensions();
  if (dims.size() != letters.size()) return false;
  int64_t step = 1;
  for (size_t i = letters.size(); i-- > 0;) {
    auto axis = std::find_if(axes.begin(), axes.end(),
                             [&](const Axis& a) { return a.letter == letters[i]; });
    if (axis == axes.end()) axis = axes.insert(axes.begin(), Axis{letters[i]});
    if (dims[i] != 1) {
      if (axis->size != 1 && axis->size != dims[i]) return false;
      axis->size = dims[i];
      axis->step[operand] = step;
    }
    step *= dims[i];
  }
  return true;
}

// The whole problem: the axes 'd', 's' and 'e', which the library names so, those of
// rows that meet the same keys, and the others.
struct Problem {
  Axis features{'d'}, keys{'s'}, values{'e'};
  Axes rows, batch;
  std::array<const char*, kOperands> data{};

  explicit Problem(const std::vector<Axis>& axes) {
    for (const Axis& axis : axes) {
      if (axis.letter == 'd') {
        features = axis;
      } else if (axis.letter == 's') {
        keys = axis;
      } else if (axis.letter == 'e') {
        values = axis;
      } else if (axis.size != 1) {
        const bool shared = axis.step[kK] == 0 && axis.step[kV] == 0;
        (shared ? rows : batch).all.push_back(axis);
      }
    }
  }

  AttentionShape shape(float scale, float fill) const {
    return {features.size,     keys.size,          values.size,
            features.step[kQ], keys.step[kK],      features.step[kK],
            keys.step[kV],     values.step[kV],    keys.step[kBias],
            keys.step[kMask],  values.step[kOut], scale,
            fill};
  }

  // Rows [first, first + count) of one place of the batch.
  AttentionRows rows_at(int64_t place, int64_t first, int64_t count) const {
    std::array<int64_t, kOperands> base{};
    batch.add_offsets(place, base);
    const auto floats = [&](Operand i) {
      const auto* all = reinterpret_cast<const float*>(data[i]);
      return all ? all + base[i] : nullptr;
    };
    AttentionRows part{};
    part.count = count;
    part.q = floats(kQ);
    part.k = floats(kK);
    part.v = floats(kV);
    part.bias = floats(kBias);
    if (data[kMask]) {
      part.mask = reinterpret_cast<const uint8_t*>(data[kMask]) + base[kMask];
    }
    part.out = const_cast<float*>(floats(kOut));
    std::array<int64_t, kOperands> at{};
    for (int64_t r = 0; r < AttentionRows::kMostRows; ++r) {
      if (r < count) {
        at = {};
        rows.add_offsets(first + r, at);
      }
      part.q_rows[r] = at[kQ];
      part.bias_rows[r] = at[kBias];
      part.mask_rows[r] = at[kMask];
      part.out_rows[r] = at[kOut];
    }
    return part;
  }
};

ffi::Error attention(ffi::ThreadPool pool, Any q, Any k, Any v, Any bias, Any mask,
                     ffi::Result<Any> out, std::string_view axes, bool has_bias,
                     bool has_mask, float scale, float fill, int64_t layout) {
  if (layout != kLayout) return bad_attention("another layout than this library's");
  std::array<std::string_view, kOperands> letters;
  if (!letters_of(axes, has_bias, has_mask, letters)) return bad_attention("axes");
  const std::array<const Any*, kOperands> operands{&q,    &k, &v,
                                                   &bias, &mask, &*out};
  const char* names[] = {"q", "k", "v", "bias", "mask", "result"};
  std::vector<Axis> found;
  for (int i : {kOut, kQ, kK, kV, kBias, kMask}) {
    if ((i == kBias && !has_bias) || (i == kMask && !has_mask)) continue;
    const auto dtype = i == kMask ? ffi::DataType::PRED : ffi::DataType::F32;
    if (operands[i]->element_type() != dtype ||
        !add_axes(static_cast<Operand>(i), letters[i], *operands[i], found)) {
      return bad_attention(names[i]);
    }
  }
  Problem problem(found);
  const int64_t places = problem.batch.count(), rows = problem.rows.count();
  if (static_cast<int64_t>(out->element_count()) !=
      places * rows * problem.values.size) {
    return bad_attention("result");
  }
  if (out->element_count() == 0) return ffi::Error::Success();
  for (int i = 0; i < kOperands; ++i) {
    const bool there = (i != kBias || has_bias) && (i != kMask || has_mask);
    if (there) problem.data[i] = static_cast<const char*>(operands[i]->untyped_data());
  }
  const AttentionKernels& kernels = attention_kernels();
  const AttentionShape shape = problem.shape(scale, fill);
  const int64_t blocks = (rows + kernels.most_rows - 1) / kernels.most_rows;
  const double products =
      1.0 * places * rows * shape.keys * (shape.features + shape.values);
  parallel_for(
      pool, places * blocks,
      [&](int64_t i) {
        const int64_t first = i % blocks * kernels.most_rows;
        const int64_t count = std::min(kernels.most_rows, rows - first);
        kernels.attend(shape, problem.rows_at(i / blocks, first, count));
      },
      products < kAlone ? Help::kAwake : Help::kAny);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jcompress

extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_attention(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jcompress_attention, jcompress::attention,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<std::string_view>("axes")
                                  .Attr<bool>("has_bias")
                                  .Attr<bool>("has_mask")
                                  .Attr<float>("scale")
                                  .Attr<float>("fill")
                                  .Attr<int64_t>("layout"));
