// Events: which inputs of a product fired, and how many. Local to the translation unit.
#pragma once

#include "product.h"

namespace {

using namespace spikegpt::engine;

inline uint64_t nonzero(const int8_t *events) {
#if defined(__AVX512BW__)
  const __m512i all = _mm512_load_si512(events);
  return _mm512_test_epi8_mask(all, all);
#elif defined(__AVX2__)
  const __m256i zero = _mm256_setzero_si256();
  const __m256i *halves = reinterpret_cast<const __m256i *>(events);
  const uint32_t low = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_load_si256(halves), zero));
  const uint32_t high = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_load_si256(halves + 1), zero));
  return ~(static_cast<uint64_t>(high) << 32 | low);
#else
  uint64_t mask = 0;
  for (int i = 0; i < 64; ++i) mask |= static_cast<uint64_t>(events[i] != 0) << i;
  return mask;
#endif
}

inline int lowest(uint64_t mask) {
#if defined(__GNUC__)
  return __builtin_ctzll(mask);
#else
  int bit = 0;
  while (!(mask >> bit & 1)) ++bit;
  return bit;
#endif
}

// Lists the inputs of `site` that fired (or, in a dense engine, all of them), group by group.
void gather(const Site &site, const int8_t *events, bool dense, const Events &list) {
  int count = 0;
  for (int group = 0; group < site.groups; ++group) {
    list.begin[group] = count;
    const int begin = group * site.group_inputs;
    const int end = begin + site.group_inputs < site.inputs ? begin + site.group_inputs : site.inputs;
    for (int base = begin; base < end; base += 64) {
      uint64_t mask = nonzero(events + base);
      if (dense) mask = end - base < 64 ? (uint64_t{1} << (end - base)) - 1 : ~uint64_t{0};
      for (; mask; mask &= mask - 1, ++count) {
        const int input = base + lowest(mask);
        list.input[count] = static_cast<uint32_t>(input);
        list.value[count] = events[input];
      }
    }
    int sum = 0;
    for (int i = list.begin[group]; i < count; ++i) sum += list.value[i];
    list.sum[group] = sum;
    for (; count % kRows; ++count) {
      list.input[count] = list.input[count - 1];
      list.value[count] = 0;
    }
  }
  list.begin[site.groups] = count;
}

void count(const Site &site, const int8_t *events, const Events &list, int levels, Counts &counts) {
  int active = 0, units = 0, saturated = 0;
  for (int i = 0; i < list.begin[site.groups]; ++i) {
    const int size = list.value[i] < 0 ? -list.value[i] : list.value[i];
    active += size != 0;
    units += size;
    saturated += size == levels;
  }
  ++counts.steps;
  counts.active += active;
  counts.units += units;
  counts.saturated += saturated;
  if (counts.fired)
    for (int i = 0; i < site.inputs; ++i) counts.fired[i] += events[i] != 0;
}

}  // namespace
