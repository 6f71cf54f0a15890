// The sampler's loops over the vocabulary, built once for each instruction set. Sums are added in one fixed order.
#include "../../ops/csrc/lanes.h"
#include "isa.h"
#include "sample.h"

namespace {

using namespace spikegpt::engine;

constexpr int kBlockOf = spikegpt::engine::kBlock;

inline float fold_largest(const float *lanes) {
  float best = lanes[0];
  for (int lane = 1; lane < kBlockOf; ++lane) best = lanes[lane] > best ? lanes[lane] : best;
  return best;
}

// Halves are added to one another: the order that a tree of vectors adds in.
inline float fold_sum(float *lanes) {
  for (int half = kBlockOf / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

// Calls work(first, width) for every block.
template <class Work>
inline void each_block(int count, const Work &work) {
  for (int first = 0; first + kBlockOf <= count; first += kBlockOf) work(first, kBlockOf);
  if (count % kBlockOf) work(count / kBlockOf * kBlockOf, count % kBlockOf);
}

float survey(const float *logits, int count, float *largest) {
  float faults[kBlockOf] = {};
  each_block(count, [&](int first, int width) {
    const float *__restrict x = logits + first;
    if (width == kBlockOf) {
      for (int lane = 0; lane < kBlockOf; ++lane) faults[lane] += x[lane] * 0.0f;
      largest[first / kBlockOf] = fold_largest(x);
      return;
    }
    float best = x[0];
    for (int lane = 0; lane < width; ++lane) {
      faults[lane] += x[lane] * 0.0f;
      best = x[lane] > best ? x[lane] : best;
    }
    largest[first / kBlockOf] = best;
  });
  return fold_sum(faults);
}

void weigh(const float *logits, int count, float largest, float sharpness, float *weights, float *sums) {
  each_block(count, [&](int first, int width) {
    const float *__restrict x = logits + first;
    float *__restrict w = weights + first;
    float lanes[kBlockOf] = {};
    if (width == kBlockOf) {
      for (int lane = 0; lane < kBlockOf; ++lane) w[lane] = exp_negative((x[lane] - largest) * sharpness);
      for (int lane = 0; lane < kBlockOf; ++lane) lanes[lane] = w[lane];
    } else {
      for (int lane = 0; lane < width; ++lane) lanes[lane] = w[lane] = exp_negative((x[lane] - largest) * sharpness);
    }
    sums[first / kBlockOf] = fold_sum(lanes);
  });
}

void sum_above(const float *weights, int count, float cutoff, float *sums) {
  each_block(count, [&](int first, int width) {
    const float *__restrict w = weights + first;
    float lanes[kBlockOf] = {};
    if (width == kBlockOf)
      for (int lane = 0; lane < kBlockOf; ++lane) lanes[lane] = w[lane] >= cutoff ? w[lane] : 0.0f;
    else
      for (int lane = 0; lane < width; ++lane) lanes[lane] = w[lane] >= cutoff ? w[lane] : 0.0f;
    sums[first / kBlockOf] = fold_sum(lanes);
  });
}

constexpr int kRun = 1024;  // weights that are added as floats before their sum goes to the total

double total_above(const float *weights, int count, float cutoff) {
  double total = 0.0;
  for (int run = 0; run < count; run += kRun) {
    const int size = count - run < kRun ? count - run : kRun;
    float lanes[kBlockOf] = {};
    each_block(size, [&](int first, int width) {
      const float *__restrict w = weights + run + first;
      if (width == kBlockOf)
        for (int lane = 0; lane < kBlockOf; ++lane) lanes[lane] += w[lane] >= cutoff ? w[lane] : 0.0f;
      else
        for (int lane = 0; lane < width; ++lane) lanes[lane] += w[lane] >= cutoff ? w[lane] : 0.0f;
    });
    total += fold_sum(lanes);
  }
  return total;
}

double count_above(const float *weights, int count, float cutoff) {
  int found = 0;
  for (int i = 0; i < count; ++i) found += weights[i] >= cutoff;
  return found;
}

int keep_between(float *weights, int count, float low, float high) {
  int found = 0;
  each_block(count, [&](int first, int width) {
    const float *w = weights + first;
    int hits = 0;
    if (width == kBlockOf)
      for (int lane = 0; lane < kBlockOf; ++lane) hits += (w[lane] >= low) & (w[lane] < high);
    else
      hits = 1;
    if (!hits) return;
    for (int lane = 0; lane < width; ++lane)
      if (w[lane] >= low && w[lane] < high) weights[found++] = w[lane];
  });
  return found;
}

void scale(const int32_t *__restrict integers, int64_t count, float unit, float *__restrict logits) {
  for (int64_t o = 0; o < count; ++o) logits[o] = static_cast<float>(integers[o]) * unit;
}

}  // namespace

namespace spikegpt::engine {
namespace SPIKEGPT_ISA {

extern const SampleLoops sample_loops;
const SampleLoops sample_loops = {SPIKEGPT_ISA_NAME, survey, weigh, sum_above, total_above, count_above, keep_between, scale};

}  // namespace SPIKEGPT_ISA
}  // namespace spikegpt::engine
