// Token shift and mix: y_i = x_t m_i + x_{t-1} (1 - m_i).
#include "lanes.h"

namespace {

// In the form that leaves x exact at mix = 1 and `before` at 0.
void mix_row(int width, const float *__restrict x, const float *__restrict before, const float *__restrict mix,
             float *__restrict y) {
  for (int c = 0; c < width; ++c) {
    const float step = x[c] - before[c], near = before[c] + mix[c] * step, far = x[c] - step * (1.0f - mix[c]);
    y[c] = mix[c] < 0.5f && mix[c] > -0.5f ? near : far;
  }
}

// The gradients of one token: `grad` is of its results, `next` of those of the token after it, which this one shifts to.
template <int count>
void backward_row(int width, const float *__restrict x, const float *__restrict before, const float *const *mixes,
                  const float *const *grads, const float *const *nexts, float *__restrict grad_x, float *const *sums) {
  constexpr int second = count > 1 ? 1 : 0, third = count > 2 ? 2 : 0;
  const float *__restrict m0 = mixes[0], *__restrict m1 = mixes[second], *__restrict m2 = mixes[third];
  const float *__restrict g0 = grads[0], *__restrict g1 = grads[second], *__restrict g2 = grads[third];
  const float *__restrict n0 = nexts[0], *__restrict n1 = nexts[second], *__restrict n2 = nexts[third];
  float *__restrict s0 = sums[0], *__restrict s1 = sums[second], *__restrict s2 = sums[third];
  for (int c = 0; c < width; ++c) {
    const float step = x[c] - before[c];
    float grad = m0[c] * g0[c] + (1.0f - m0[c]) * n0[c];
    s0[c] += g0[c] * step;
    if constexpr (count > 1) {
      grad += m1[c] * g1[c] + (1.0f - m1[c]) * n1[c];
      s1[c] += g1[c] * step;
    }
    if constexpr (count > 2) {
      grad += m2[c] * g2[c] + (1.0f - m2[c]) * n2[c];
      s2[c] += g2[c] * step;
    }
    grad_x[c] = grad;
  }
}

void add_shifted(int width, const float *__restrict mix, const float *__restrict grad_y, float *__restrict grad_last) {
  for (int c = 0; c < width; ++c) grad_last[c] += (1.0f - mix[c]) * grad_y[c];
}

void clear(float *values, int64_t width) { std::memset(values, 0, sizeof(float) * width); }

// One token's block of channels; `sums` accumulates the gradients of the mixes.
template <int count>
void backward_block(const ShiftMixBackward &op, int64_t batch, int64_t t, int64_t channel, float *sums) {
  const int64_t time = op.in.shape.time, channels = op.in.shape.channels;
  const int64_t at = (batch * time + t) * channels + channel, last_at = batch * channels + channel;
  const int width = static_cast<int>(channels - channel < kRow ? channels - channel : kRow);
  const float *before = t > 0 ? op.in.x + at - channels : op.in.last + last_at;
  float rows[kMixes][kRow], next_rows[kMixes][kRow];
  const float *mixes[kMixes], *grads[kMixes], *nexts[kMixes];
  float *totals[kMixes];
  for (int i = 0; i < count; ++i) {
    mixes[i] = op.in.mixes[i] + channel;
    grads[i] = read(op.grad_y[i], at, width, rows[i]);
    if (t + 1 == time) clear(next_rows[i], width);
    nexts[i] = t + 1 < time ? read(op.grad_y[i], at + channels, width, next_rows[i]) : next_rows[i];
    totals[i] = sums + i * channels + channel;
    if (t == 0) add_shifted(width, mixes[i], grads[i], op.grad_last + last_at);
  }
  backward_row<count>(width, op.in.x + at, before, mixes, grads, nexts, op.grad_x + at, totals);
}

template <int count>
void backward_chunk(const ShiftMixBackward &op, int64_t item) {
  const auto [batches, time, channels] = op.in.shape;
  const int64_t chunks = (time + kChunk - 1) / kChunk, batch = item / chunks, begin = item % chunks * kChunk;
  const int64_t end = begin + kChunk < time ? begin + kChunk : time;
  float *sums = op.grad_mixes + item * count * channels;
  clear(sums, count * channels);
  if (begin == 0) clear(op.grad_last + batch * channels, channels);
  for (int64_t t = begin; t < end; ++t)
    for (int64_t channel = 0; channel < channels; channel += kRow) backward_block<count>(op, batch, t, channel, sums);
}

}  // namespace

namespace spikegpt::SPIKEGPT_ISA {

void shift_mix_forward(const ShiftMixForward &op, int64_t begin, int64_t end) {
  const auto [batch, time, channels] = op.in.shape;
  float buffer[kRow];
  for (int64_t row = begin; row < end; ++row)
    for (int64_t channel = 0; channel < channels; channel += kRow) {
      const int width = static_cast<int>(channels - channel < kRow ? channels - channel : kRow);
      const int64_t at = row * channels + channel;
      const float *before = row % time > 0 ? op.in.x + at - channels : op.in.last + row / time * channels + channel;
      for (int i = 0; i < op.in.count; ++i) {
        float *y = place(op.y[i], at, buffer);
        mix_row(width, op.in.x + at, before, op.in.mixes[i] + channel, y);
        finish(op.y[i], at, width, y);
      }
    }
}

void shift_mix_backward(const ShiftMixBackward &op, int64_t begin, int64_t end) {
  const auto chunk = op.in.count == 1 ? backward_chunk<1> : op.in.count == 2 ? backward_chunk<2> : backward_chunk<3>;
  for (int64_t item = begin; item < end; ++item) chunk(op, item);
}

}  // namespace spikegpt::SPIKEGPT_ISA
