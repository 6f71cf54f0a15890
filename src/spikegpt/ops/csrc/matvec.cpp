// Products of a few vectors with a large matrix, bound by the reading of the weights: y = x W^T.
#include "lanes.h"

namespace {

constexpr int kLanes = 64;

float dot(const float *__restrict a, const float *__restrict b, int64_t size) {
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  for (int lane = 0; i < size; ++i, ++lane) sums[lane] += a[i] * b[i];
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

}  // namespace

namespace spikegpt::SPIKEGPT_ISA {

void matvec(const Matvec &op, int64_t begin, int64_t end) {
  for (int64_t output = begin; output < end; ++output)
    for (int64_t row = 0; row < op.rows; ++row)
      op.y[row * op.outputs + output] = dot(op.x + row * op.inputs, op.weight + output * op.inputs, op.inputs);
}

}  // namespace spikegpt::SPIKEGPT_ISA
