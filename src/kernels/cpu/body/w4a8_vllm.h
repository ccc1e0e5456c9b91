// SPDX-License-Identifier: Apache-2.0
// The integer form of the `vllm` product, for units that look bytes up (S::kByteTables). 128 positions of a vector of
// rows at a time: weights become bytes by one look-up in their group's table, integer dot products give the exact sum
// e + o of each k32 step, and its one rounding is the contract's (docs/kernels/cpu_w4a8.md, "vllm"). Steps that
// w4a8_vllm_pack.h marks go through the fp32 chains.
//
// A lane of 16 bytes is one row, its words are the four steps. Register r of a vector has rows r, r + 4, ...
#pragma once

#include "kernels/cpu/body/w4a8_direct.h"
#include "kernels/cpu/body/w4a8_vllm_pack.h"

namespace quadrille::kernels::cpu {
namespace {

// Weights are fetched this many words ahead: the lines of a block are not read in ascending order, and with several
// tokens there is time between two blocks.
constexpr int64_t kWordsAhead = 512;

// 128 positions of one vector of rows. A step behind the last repeats the last: its activations are zero.
template <class S>
struct VllmWeights {
  const uint32_t* codes[kBlockSteps];  // first word of each step
  const uint8_t* scale[kBlockSteps];   // e4m3 codes of its group
  int64_t steps = 0;                   // that exist
};

template <class S>
QD_HD VllmWeights<S> vllm_weights(const W4Matrix& matrix, const KAxis& axis, int64_t vector, int64_t block) {
  VllmWeights<S> weights;
  const uint32_t* words = words_of<S>(matrix, axis, vector);
  const int64_t first = block * kBlockSteps;
  weights.steps = smaller(kBlockSteps, axis.kp / kStep - first);
  for (int64_t s = 0; s < kBlockSteps; ++s) {
    const int64_t step = first + smaller(s, weights.steps - 1);
    weights.codes[s] = words + step * 4 * kBlockRows;
    weights.scale[s] = matrix.scale_e4m3 + scale_offset<S>(axis, vector, axis.group(step * kStep / axis.piece));
  }
  return weights;
}

// Tables of the four registers: one, two or four groups in 128 positions.
template <class S, int kTables>
struct VllmDecoder {
  typename S::I table[kTables][4];

  QD_HD explicit VllmDecoder(const VllmWeights<S>& weights) {
#pragma GCC unroll 4
    for (int g = 0; g < kTables; ++g) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        table[g][r] = S::row_tables(kVllmTables.weight, weights.scale[g * (kBlockSteps / kTables)] + r);
      }
    }
  }

  QD_HD typename S::I look_up(int r, typename S::I index) const {
    typename S::I bytes = S::look_up(table[0][r], index);
    if constexpr (kTables == 2) bytes = S::template look_up_words<0b1100>(bytes, table[1][r], index);
    if constexpr (kTables == 4) {
      bytes = S::template look_up_words<0b0010>(bytes, table[1][r], index);
      bytes = S::template look_up_words<0b0100>(bytes, table[2][r], index);
      bytes = S::template look_up_words<0b1000>(bytes, table[3][r], index);
    }
    return bytes;
  }

  // Words `place` of the four steps: bytes[odd][register].
  QD_HD void decode(const VllmWeights<S>& weights, int place, typename S::I (&bytes)[2][4]) const {
    typename S::I words[4];
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      const uint32_t* line = weights.codes[s] + place * kBlockRows;
      __builtin_prefetch(line + kWordsAhead);
      words[s] = S::load_words(line);
    }
    S::transpose4(words);
    const typename S::I nibble = S::set_i(0x0f0f0f0f);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      bytes[0][r] = look_up(r, S::and_i(words[r], nibble));
      bytes[1][r] = look_up(r, S::and_i(S::template shift_right<4>(words[r]), nibble));
    }
  }
};

// Exact sums of T tokens and R registers of weights: words 0..1 and 2..3 of a lane are halves of steps 0, 1 and 2, 3.
template <class S, int T, int R>
struct VllmSums {
  typename S::I sum[R][T][2];

  QD_HD void clear() {
#pragma GCC unroll 64
    for (int i = 0; i < R * T * 2; ++i) sum[i / (T * 2)][i / 2 % T][i % 2] = S::set_i(0);
  }

  // `index` = 2 * place + odd; records of T tokens.
  QD_HD void add(const typename S::I (&bytes)[R], const VllmRecord* records, int index) {
    typename S::I low[R], high[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      low[r] = S::widen_low(bytes[r]);
      high[r] = S::widen_high(bytes[r]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < T; ++m) {
      const typename S::I x0 = S::load_quarter(records[m].value[index][0]);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r][m][0] = S::dot_pairs(sum[r][m][0], low[r], x0);
      const typename S::I x1 = S::load_quarter(records[m].value[index][1]);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r][m][1] = S::dot_pairs(sum[r][m][1], high[r], x1);
    }
  }

  // e + o of the four steps in units of the weights, rounded: word s of a lane is step s.
  QD_HD typename S::F rounded(int r, int m, const VllmRecord& record) const {
    const typename S::I total = S::add_i(S::add_pairs(sum[r][m][0], sum[r][m][1]), S::load_quarter(record.bias));
    return S::mul(S::to_float(total), S::as_float(S::load_quarter(record.unit)));
  }
};

// The marked steps of 128 positions of a vector of rows: fp32 chains over weights that are decoded once where two
// tokens need them.
template <class S>
struct VllmChains {
  float* panel = nullptr;       // [4 steps][32 in packed order][kLanes]
  uint32_t wanted_by_many = 0;  // bit s: decode step s into the panel
  mutable uint32_t decoded = 0;
};

template <class S, int J = 0>
QD_HD void chain_word(typename S::I words, typename S::F scale, float* panel) {
  if constexpr (J < 8) {
    S::store(panel + packed_position(J) * S::kLanes, weight<S, true, J>(words, scale));
    chain_word<S, J + 1>(words, scale, panel);
  }
}

// acc + (e + o) of step `step`; act [32] in packed order.
template <class S>
QD_HD typename S::F chain_step(const VllmChains<S>& chains, const VllmWeights<S>& weights, int step, const float* act,
                               typename S::F acc) {
  const typename S::F scale[1] = {S::load_e4m3(weights.scale[step])};
  if ((chains.wanted_by_many >> step & 1u) == 0) {
    const uint32_t* const codes[1] = {weights.codes[step]};
    typename S::F sum[1][1] = {{acc}};
    direct_step<S, true, 1, 1>(codes, scale, act, sum);
    return sum[0][0];
  }
  float* panel = chains.panel + step * kStep * S::kLanes;
  if ((chains.decoded >> step & 1u) == 0) {
    for (int w = 0; w < 4; ++w) {
      chain_word<S>(S::load_words(weights.codes[step] + w * kBlockRows), scale[0], panel + w * 4 * S::kLanes);
    }
    chains.decoded |= 1u << step;
  }
  typename S::F even = S::zero(), odd = S::zero();
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    even = S::fma_exact(S::load(panel + i * S::kLanes), S::set(act[i]), even);
    odd = S::fma_exact(S::load(panel + (16 + i) * S::kLanes), S::set(act[16 + i]), odd);
  }
  return S::add(acc, S::add(even, odd));
}

// sums [4][kLanes] of the steps that are not marked, in units of the weights.
template <class S>
__attribute__((noinline)) void add_marked(const VllmChains<S>& chains, const VllmWeights<S>& weights, uint32_t marked,
                                          const float* sums, const float* act, float* acc) {
  typename S::F total = S::load(acc);
  for (int s = 0; s < weights.steps; ++s) {
    if (marked >> s & 1u) {
      total = chain_step<S>(chains, weights, s, act + s * kStep, total);
    } else {
      total = S::fma(S::e4m3_units(weights.scale[s]), S::load(sums + s * S::kLanes), total);
    }
  }
  S::store(acc, total);
}

// What a tile of tokens adds to its sums, beside the weights.
struct VllmTokens {
  const VllmRecord* records = nullptr;  // [T]
  const float* exact = nullptr;         // [T][4][32]
  float* acc = nullptr;                 // [T][kLanes]
};

// acc = acc + (e + o), step after step; rounded[4] registers. The unit of the weights is a power of two.
template <class S>
QD_HD void add_steps(const VllmChains<S>& chains, const VllmWeights<S>& weights, const typename S::F (&units)[4],
                     const typename S::F (&rounded)[4], const VllmTokens& tokens, int m) {
  typename S::I steps[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) steps[r] = S::as_int(rounded[r]);
  S::transpose4(steps);
  float* acc = tokens.acc + m * S::kLanes;
  const uint32_t marked = tokens.records[m].marked;
  if (marked != 0) [[unlikely]] {
    alignas(64) float sums[kBlockSteps * S::kLanes];
    for (int s = 0; s < kBlockSteps; ++s) S::store(sums + s * S::kLanes, S::as_float(steps[s]));
    return add_marked<S>(chains, weights, marked, sums, tokens.exact + m * kBlockDepth, acc);
  }
  typename S::F total = S::load(acc);
#pragma GCC unroll 4
  for (int s = 0; s < kBlockSteps; ++s) total = S::fma(units[s], S::as_float(steps[s]), total);
  S::store(acc, total);
}

template <class S>
QD_HD void load_units(const VllmWeights<S>& weights, typename S::F (&units)[4]) {
#pragma GCC unroll 4
  for (int s = 0; s < kBlockSteps; ++s) units[s] = S::e4m3_units(weights.scale[s]);
}

// One or two tokens: weights are used as they are decoded.
template <class S, int T, int kTables>
QD_HD void block_at_once(const VllmChains<S>& chains, const VllmWeights<S>& weights, const VllmTokens& tokens) {
  const VllmDecoder<S, kTables> decoder(weights);
  VllmSums<S, T, 4> sums;
  sums.clear();
#pragma GCC unroll 8
  for (int place = 0; place < 4; ++place) {
    typename S::I bytes[2][4];
    decoder.decode(weights, place, bytes);
    sums.add(bytes[0], tokens.records, 2 * place);
    sums.add(bytes[1], tokens.records, 2 * place + 1);
  }
  typename S::F units[4];
  load_units<S>(weights, units);
  for (int m = 0; m < T; ++m) {
    typename S::F rounded[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) rounded[r] = sums.rounded(r, m, tokens.records[m]);
    add_steps<S>(chains, weights, units, rounded, tokens, m);
  }
}

// bytes [2 * place + odd][register][4 * kLanes].
template <class S, int kTables>
__attribute__((noinline)) void decode_bytes(const VllmWeights<S>& weights, uint8_t* bytes) {
  const VllmDecoder<S, kTables> decoder(weights);
  for (int place = 0; place < 4; ++place) {
    typename S::I decoded[2][4];
    decoder.decode(weights, place, decoded);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) S::store_i(bytes + (place * 8 + i) * 4 * S::kLanes, decoded[i / 4][i % 4]);
  }
}

// Registers of weights that T tokens meet at once.
template <class S, int T>
constexpr int vllm_registers() {
  const int most = S::kIntegerSums / (2 * T);
  return most > 4 ? 4 : (most >= 2 ? 2 : 1);
}

// Registers [0, R) of `bytes`: out [T][4][kLanes] gets the rounded sums. A call of its own, and unrolled: as one loop
// nest the compiler keeps sums and activations on the stack.
template <class S, int T, int R>
__attribute__((noinline)) void registers_of_bytes(const uint8_t* bytes, const VllmRecord* records, float* out) {
  VllmSums<S, T, R> sums;
  sums.clear();
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    typename S::I w[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) w[r] = S::load_i(bytes + (i * 4 + r) * 4 * S::kLanes);
    sums.add(w, records, i);
  }
#pragma GCC unroll 32
  for (int i = 0; i < T * R; ++i) {
    S::store(out + (i / R * 4 + i % R) * S::kLanes, sums.rounded(i % R, i / R, records[i / R]));
  }
}

template <class S, int T>
QD_HD void block_of_bytes(const VllmChains<S>& chains, const VllmWeights<S>& weights, const uint8_t* bytes,
                          const VllmTokens& tokens) {
  constexpr int kRegisters = vllm_registers<S, T>();
  alignas(64) float rounded[T * 4 * S::kLanes];
  for (int first = 0; first < 4; first += kRegisters) {
    registers_of_bytes<S, T, kRegisters>(bytes + first * 4 * S::kLanes, tokens.records, rounded + first * S::kLanes);
  }
  typename S::F units[4];
  load_units<S>(weights, units);
  for (int m = 0; m < T; ++m) {
    const float* from = rounded + m * 4 * S::kLanes;
    const typename S::F sums[4] = {S::load(from), S::load(from + S::kLanes), S::load(from + 2 * S::kLanes),
                                   S::load(from + 3 * S::kLanes)};
    add_steps<S>(chains, weights, units, sums, tokens, m);
  }
}

}  // namespace
}  // namespace quadrille::kernels::cpu
