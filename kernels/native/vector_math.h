// Functions of vectors of floats, over the types of sparse_floats.h. Their polynomials
// were fitted for this file; errors are those found over all floats of the ranges named.
#pragma once

#include <cstdint>

#include "sparse_floats.h"

namespace jcompress {
namespace {

template <class V>
struct Math {
  using F = typename V::F;
  using I = decltype(F{} < F{});  // integers of as many bits

  static F of(float x) { return V::broadcast(x); }
  // What is no number stays so if it comes as `x`.
  static F at_most(F x, F high) { return x > high ? high : x; }
  static F at_least(F x, F low) { return x < low ? low : x; }

  // a / b for finite b that are no denormals, to the last bit but one: an estimate of
  // 1 / b, made better twice. A division keeps the processor from all else.
  static F quotient(F a, F b) {
    F inverse;
#if defined(__AVX512F__)
    if constexpr (V::kLanes == 16) {
      inverse = _mm512_rcp14_ps(b);
    } else
#endif
#if defined(__AVX2__)
    if constexpr (V::kLanes == 8) {
      inverse = _mm256_rcp_ps(b);
    } else
#endif
    {
      return a / b;
    }
    inverse = V::fma(inverse, V::fma(-b, inverse, of(1.0f)), inverse);
    const F about = a * inverse;
    return V::fma(V::fma(-b, about, a), inverse, about);
  }

  // e^x within 2e-7 of its value; 0 below -87.3, infinite above 88.3.
  static F exp(F x) {
    const F low = of(-87.33654f), high = of(88.37626f);
    const F within = at_most(at_least(x, low), high);
    // The nearest integer, in the last bits of a sum with 1.5 * 2^23.
    const F magic = of(12582912.0f);
    const F shifted = V::fma(within, of(1.44269504f), magic);
    const F power = shifted - magic;
    F r = V::fma(power, of(-0.693359375f), within);
    r = V::fma(power, of(2.12194440e-4f), r);
    F p = of(1.3814477e-3f);
    p = V::fma(p, r, of(8.3687771e-3f));
    p = V::fma(p, r, of(4.1668393e-2f));
    p = V::fma(p, r, of(1.6666520e-1f));
    p = V::fma(p, r, of(4.9999994e-1f));
    p = V::fma(p, r, of(1.0f));
    p = V::fma(p, r, of(1.0f));
    const I bits = ((I)shifted - 0x4b400000) << 23;
    F result = (F)((I)p + bits);
    result = x < low ? of(0.0f) : result;
    result = x > high ? of(__builtin_inff()) : result;
    return x == x ? result : x;
  }

  // Within 1e-7 of 1 / (1 + e^-x).
  static F sigmoid(F x) {
    const F within = at_least(x, of(-87.0f));
    return quotient(of(1.0f), of(1.0f) + exp(-within));
  }

  // Within 2e-7 of the hyperbolic tangent, not of its logarithm: small results have
  // fewer digits.
  static F tanh(F x) {
    const F within = at_most(x, of(43.0f));
    const F above = exp(within + within) + of(1.0f);
    return V::fma(of(-2.0f), quotient(of(1.0f), above), of(1.0f));
  }

  // Within 4e-7 of the error function, relative to it.
  static F erf(F x) {
    const F within = at_most(at_least(x, of(-4.0f)), of(4.0f));
    const F t = within * within;
    F p = of(1.9110884e-8f);
    p = V::fma(p, t, of(-1.9422748e-6f));
    p = V::fma(p, t, of(1.4727921e-4f));
    p = V::fma(p, t, of(3.9902986e-3f));
    p = V::fma(p, t, of(5.1524051e-2f));
    p = V::fma(p, t, of(2.0711906e-1f));
    p = V::fma(p, t, of(1.1283791f));
    F q = of(1.0210437e-3f);
    q = V::fma(q, t, of(1.4957529e-2f));
    q = V::fma(q, t, of(1.1796817e-1f));
    q = V::fma(q, t, of(5.1688576e-1f));
    q = V::fma(q, t, of(1.0f));
    const F one = of(1.0f);
    return at_most(at_least(quotient(within * p, q), -one), one);
  }
};

}  // namespace
}  // namespace jcompress
