// Cross entropy of logits, and its gradient with a pull on the largest logit. Sums go by columns of kBlock lanes, so that
// they come out the same on every instruction set.
#include "lanes.h"

#include <cmath>

namespace {

// Calls body(first class, width) for the blocks of one row.
template <class Body>
void for_blocks(int64_t classes, const Body &body) {
  for (int64_t at = 0; at < classes; at += kBlock)
    body(at, static_cast<int>(classes - at < kBlock ? classes - at : kBlock));
}

void raise(float *__restrict top, const float *__restrict x, int width) {
  for (int c = 0; c < width; ++c) top[c] = top[c] < x[c] ? x[c] : top[c];
}

void add_exponentials(float *__restrict sum, const float *__restrict x, float top, int width) {
  for (int c = 0; c < width; ++c) sum[c] += exp_negative(x[c] - top);
}

int count_equal(const float *x, float value, int width) {
  int equal = 0;
  for (int c = 0; c < width; ++c) equal += x[c] == value;
  return equal;
}

float largest_of(const CrossEntropyForward &op, int64_t row) {
  float top[kBlock], buffer[kBlock];
  for (float &value : top) value = -INFINITY;
  for_blocks(op.classes, [&](int64_t at, int width) {
    raise(top, read(op.logits, row * op.classes + at, width, buffer), width);
  });
  float largest = top[0];
  for (const float value : top) largest = largest < value ? value : largest;
  return largest;
}

// The first class with this logit; 0 if there is none, where a logit is NaN.
int64_t find(const CrossEntropyForward &op, int64_t row, float value) {
  float buffer[kBlock];
  for (int64_t at = 0; at < op.classes; at += kBlock) {
    const int width = static_cast<int>(op.classes - at < kBlock ? op.classes - at : kBlock);
    const float *x = read(op.logits, row * op.classes + at, width, buffer);
    if (count_equal(x, value, width) == 0) continue;
    int c = 0;
    while (x[c] != value) ++c;
    return at + c;
  }
  return 0;
}

void forward_row(const CrossEntropyForward &op, int64_t row) {
  float sum[kBlock] = {}, buffer[kBlock], total = 0.0f;
  const float largest = largest_of(op, row);
  for_blocks(op.classes, [&](int64_t at, int width) {
    add_exponentials(sum, read(op.logits, row * op.classes + at, width, buffer), largest, width);
  });
  for (const float value : sum) total += value;
  op.largest[row] = largest;
  op.log_totals[row] = largest + std::log(total);
  op.where[row] = find(op, row, largest);
  op.losses[row] = op.log_totals[row] - *read(op.logits, row * op.classes + op.targets[row], 1, buffer);
}

void softmax_row(float *__restrict grad, const float *__restrict x, float log_total, float scale, int width) {
  for (int c = 0; c < width; ++c) grad[c] = exp_negative(x[c] - log_total) * scale;
}

void backward_row(const CrossEntropyBackward &op, int64_t row) {
  float buffer[kBlock], grad_buffer[kBlock];
  const float scale = op.grad_losses[row], pull = op.largest[row] * op.penalty * scale;
  for_blocks(op.classes, [&](int64_t at, int width) {
    const int64_t here = row * op.classes + at, target = op.targets[row] - at, where = op.where[row] - at;
    float *grad = place(op.grad, here, grad_buffer);
    softmax_row(grad, read(op.logits, here, width, buffer), op.log_totals[row], scale, width);
    if (0 <= target && target < width) grad[target] -= scale;
    if (0 <= where && where < width) grad[where] += pull;
    finish(op.grad, here, width, grad);
  });
}

}  // namespace

namespace spikegpt::SPIKEGPT_ISA {

void cross_entropy_forward(const CrossEntropyForward &op, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) forward_row(op, row);
}

void cross_entropy_backward(const CrossEntropyBackward &op, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) backward_row(op, row);
}

}  // namespace spikegpt::SPIKEGPT_ISA
