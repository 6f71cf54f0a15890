// Pointwise operators, a block of elements at a time.
#include "lanes.h"

namespace {

// Calls body(at, width) for the blocks of the items begin..end of kFlat elements each.
template <class Body>
void for_blocks(int64_t elements, int64_t begin, int64_t end, const Body &body) {
  const int64_t stop = end * kFlat < elements ? end * kFlat : elements;
  for (int64_t at = begin * kFlat; at < stop; at += kRow)
    body(at, static_cast<int>(stop - at < kRow ? stop - at : kRow));
}

void square(int width, const float *__restrict x, float *__restrict y) {
  for (int c = 0; c < width; ++c) {
    const float positive = x[c] < 0.0f ? 0.0f : x[c];
    y[c] = positive * positive;
  }
}

void square_backward(int width, const float *__restrict x, const float *__restrict grad_y, float *__restrict grad_x) {
  for (int c = 0; c < width; ++c) grad_x[c] = 2.0f * (x[c] < 0.0f ? 0.0f : x[c]) * grad_y[c];
}

void gate_row(int width, const float *__restrict gate, const float *__restrict x, float *__restrict y) {
  for (int c = 0; c < width; ++c) y[c] = sigmoid(gate[c]) * x[c];
}

void gate_row_backward(int width, const float *__restrict gate, const float *__restrict x,
                       const float *__restrict grad_y, float *__restrict grad_gate, float *__restrict grad_x) {
  for (int c = 0; c < width; ++c) {
    float open, shut;
    sigmoids(gate[c], open, shut);
    grad_x[c] = grad_y[c] * open;
    grad_gate[c] = grad_y[c] * open * shut * x[c];
  }
}

// A hash whose every output bit depends on every input bit (two rounds of xor-shift and multiply, and a key before each).
inline uint32_t scramble(uint32_t x, uint32_t first, uint32_t second) {
  x ^= first;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  x ^= (x >> 16) ^ second;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

void drop_row(int width, uint32_t start, uint32_t first, uint32_t second, uint32_t below, float scale,
              const float *__restrict x, float *__restrict y) {
  for (int c = 0; c < width; ++c) {
    const bool kept = scramble(start + static_cast<uint32_t>(c), first, second) >= below;
    y[c] = kept ? x[c] * scale : 0.0f;
  }
}

}  // namespace

namespace spikegpt::SPIKEGPT_ISA {

void relu_squared_forward(const ReluSquared &op, int64_t begin, int64_t end) {
  float x[kRow], buffer[kRow];
  for_blocks(op.elements, begin, end, [&](int64_t at, int width) {
    float *y = place(op.out, at, buffer);
    square(width, read(op.x, at, width, x), y);
    finish(op.out, at, width, y);
  });
}

void relu_squared_backward(const ReluSquared &op, int64_t begin, int64_t end) {
  float x[kRow], grad[kRow], buffer[kRow];
  for_blocks(op.elements, begin, end, [&](int64_t at, int width) {
    float *grad_x = place(op.out, at, buffer);
    square_backward(width, read(op.x, at, width, x), read(op.grad_y, at, width, grad), grad_x);
    finish(op.out, at, width, grad_x);
  });
}

void gate_forward(const GateForward &op, int64_t begin, int64_t end) {
  float gate[kRow], x[kRow], buffer[kRow];
  for_blocks(op.elements, begin, end, [&](int64_t at, int width) {
    float *y = place(op.y, at, buffer);
    gate_row(width, read(op.gate, at, width, gate), read(op.x, at, width, x), y);
    finish(op.y, at, width, y);
  });
}

void gate_backward(const GateBackward &op, int64_t begin, int64_t end) {
  float gate[kRow], x[kRow], grad[kRow], gate_buffer[kRow], x_buffer[kRow];
  for_blocks(op.elements, begin, end, [&](int64_t at, int width) {
    float *grad_gate = place(op.grad_gate, at, gate_buffer), *grad_x = place(op.grad_x, at, x_buffer);
    gate_row_backward(width, read(op.gate, at, width, gate), read(op.x, at, width, x), read(op.grad_y, at, width, grad),
                      grad_gate, grad_x);
    finish(op.grad_gate, at, width, grad_gate);
    finish(op.grad_x, at, width, grad_x);
  });
}

void dropout(const Dropout &op, int64_t begin, int64_t end) {
  float x[kRow], buffer[kRow];
  const uint64_t seed = static_cast<uint64_t>(*op.seed);
  const uint32_t below = static_cast<uint32_t>(op.p * 4294967296.0);
  const float scale = 1.0f / (1.0f - op.p);
  for_blocks(op.elements, begin, end, [&](int64_t at, int width) {
    const uint32_t first = static_cast<uint32_t>(seed) + static_cast<uint32_t>(at >> 32);
    float *y = place(op.y, at, buffer);
    drop_row(width, static_cast<uint32_t>(at), first, static_cast<uint32_t>(seed >> 32), below, scale,
             read(op.x, at, width, x), y);
    finish(op.y, at, width, y);
  });
}

}  // namespace spikegpt::SPIKEGPT_ISA
