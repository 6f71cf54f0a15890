// Cross entropy of logits, its gradient with a penalty on the largest logit, and the divergence from a teacher's logits. Sums
// are accumulated in kBlock lanes, so that they come out the same on every instruction set.
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

float sum_of(const float *lanes) {
  float total = 0.0f;
  for (int c = 0; c < kBlock; ++c) total += lanes[c];
  return total;
}

float largest_of(const Values &logits, int64_t classes, int64_t row) {
  float top[kBlock], buffer[kBlock];
  for (float &value : top) value = -INFINITY;
  for_blocks(classes,
             [&](int64_t at, int width) { raise(top, read(logits, row * classes + at, width, buffer), width); });
  float largest = top[0];
  for (const float value : top) largest = largest < value ? value : largest;
  return largest;
}

// log of the sum of a row's exponentials
float log_total_of(const Values &logits, int64_t classes, int64_t row, float largest) {
  float sum[kBlock] = {}, buffer[kBlock];
  for_blocks(classes, [&](int64_t at, int width) {
    add_exponentials(sum, read(logits, row * classes + at, width, buffer), largest, width);
  });
  return largest + std::log(sum_of(sum));
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
  if (op.targets[row] == kIgnored) {
    op.losses[row] = op.log_totals[row] = op.largest[row] = 0.0f;
    op.where[row] = 0;
    return;
  }
  float buffer[1];
  const float largest = largest_of(op.logits, op.classes, row);
  op.largest[row] = largest;
  op.log_totals[row] = log_total_of(op.logits, op.classes, row, largest);
  op.where[row] = find(op, row, largest);
  op.losses[row] = op.log_totals[row] - *read(op.logits, row * op.classes + op.targets[row], 1, buffer);
}

void softmax_row(float *__restrict grad, const float *__restrict x, float log_total, float scale, int width) {
  for (int c = 0; c < width; ++c) grad[c] = exp_negative(x[c] - log_total) * scale;
}

void ignored_row(const CrossEntropyBackward &op, int64_t row) {
  float grad_buffer[kBlock];
  for_blocks(op.classes, [&](int64_t at, int width) {
    float *grad = place(op.grad, row * op.classes + at, grad_buffer);
    for (int c = 0; c < width; ++c) grad[c] = 0.0f;
    finish(op.grad, row * op.classes + at, width, grad);
  });
}

void backward_row(const CrossEntropyBackward &op, int64_t row) {
  if (op.targets[row] == kIgnored) return ignored_row(op, row);
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

void add_weighted_differences(float *__restrict sum, const float *__restrict x, const float *__restrict teacher,
                              float teacher_log_total, int width) {
  for (int c = 0; c < width; ++c) sum[c] += exp_negative(teacher[c] - teacher_log_total) * (teacher[c] - x[c]);
}

void divergence_forward_row(const DivergenceForward &op, int64_t row) {
  float sum[kBlock] = {}, buffer[kBlock], teacher_buffer[kBlock];
  const auto log_total = [&](const Values &logits) {
    return log_total_of(logits, op.classes, row, largest_of(logits, op.classes, row));
  };
  op.log_totals[row] = log_total(op.logits);
  op.teacher_log_totals[row] = log_total(op.teacher);
  for_blocks(op.classes, [&](int64_t at, int width) {
    const int64_t here = row * op.classes + at;
    add_weighted_differences(sum, read(op.logits, here, width, buffer), read(op.teacher, here, width, teacher_buffer),
                             op.teacher_log_totals[row], width);
  });
  op.divergences[row] = sum_of(sum) + (op.log_totals[row] - op.teacher_log_totals[row]);
}

void softmax_difference(float *__restrict grad, const float *__restrict x, float log_total,
                        const float *__restrict teacher, float teacher_log_total, float scale, int width) {
  for (int c = 0; c < width; ++c)
    grad[c] = (exp_negative(x[c] - log_total) - exp_negative(teacher[c] - teacher_log_total)) * scale;
}

void divergence_backward_row(const DivergenceBackward &op, int64_t row) {
  float buffer[kBlock], teacher_buffer[kBlock], grad_buffer[kBlock];
  for_blocks(op.classes, [&](int64_t at, int width) {
    const int64_t here = row * op.classes + at;
    float *grad = place(op.grad, here, grad_buffer);
    softmax_difference(grad, read(op.logits, here, width, buffer), op.log_totals[row],
                       read(op.teacher, here, width, teacher_buffer), op.teacher_log_totals[row],
                       op.grad_divergences[row], width);
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

void divergence_forward(const DivergenceForward &op, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) divergence_forward_row(op, row);
}

void divergence_backward(const DivergenceBackward &op, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) divergence_backward_row(op, row);
}

}  // namespace spikegpt::SPIKEGPT_ISA
