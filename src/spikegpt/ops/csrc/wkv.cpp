// The WKV average, times a gate if there is one: one pass forward; backward in chunks that are replayed from the saved
// states.
#include "lanes.h"

namespace {

// Weights e^(a-m), e^(b-m) with m = max(a, b), given a - b: one of them is e^0.
inline void weigh(float difference, float &past, float &now) {
  const bool past_leads = !(difference < 0.0f);
  const float other = exp_negative(past_leads ? -difference : difference);
  past = past_leads ? 1.0f : other;
  now = past_leads ? other : 1.0f;
}

struct Running {
  float a[kBlock], b[kBlock], o[kBlock];  // numerator, denominator, max exponent

  void load(const float *from, int64_t channels, int width) {
    copy(a, from, width);
    copy(b, from + channels, width);
    copy(o, from + 2 * channels, width);
  }
  void store(float *to, int64_t channels, int width) const {
    copy(to, a, width);
    copy(to + channels, b, width);
    copy(to + 2 * channels, o, width);
  }
};

void forward_step(Running &run, int width, const float *__restrict decay, const float *__restrict first,
                  const float *__restrict k, const float *__restrict v, float *__restrict y) {
  for (int c = 0; c < width; ++c) {
    const float a = run.a[c], b = run.b[c], o = run.o[c];
    float past, now;
    weigh(o - (first[c] + k[c]), past, now);
    y[c] = (past * a + now * v[c]) / (past * b + now);
    const float faded = o + decay[c];
    weigh(faded - k[c], past, now);
    run.a[c] = past * a + now * v[c];
    run.b[c] = past * b + now;
    run.o[c] = k[c] < faded ? faded : k[c];
  }
}

// One step's state before it and its weights in the output (out_) and in the update (in_).
struct Trace {
  float a[kBlock], b[kBlock], out_past[kBlock], out_now[kBlock], in_past[kBlock], in_now[kBlock];
};

void replay_step(Running &run, Trace *__restrict trace, int width, const float *__restrict decay,
                 const float *__restrict first, const float *__restrict k, const float *__restrict v) {
  for (int c = 0; c < width; ++c) {
    const float a = run.a[c], b = run.b[c], o = run.o[c];
    trace->a[c] = a;
    trace->b[c] = b;
    weigh(o - (first[c] + k[c]), trace->out_past[c], trace->out_now[c]);
    const float faded = o + decay[c];
    float past, now;
    weigh(faded - k[c], past, now);
    trace->in_past[c] = past;
    trace->in_now[c] = now;
    run.a[c] = past * a + now * v[c];
    run.b[c] = past * b + now;
    run.o[c] = k[c] < faded ? faded : k[c];
  }
}

// Gradients carried backwards. A result that does not depend on the choice of the max exponent has
// d/do = a d/da + b d/db; `o` holds the rest, and is passed to whichever exponent was the maximum.
struct Carried {
  float a[kBlock], b[kBlock], o[kBlock];
  float decay[kBlock], first[kBlock];  // sums of one chunk
};

void backward_step(Carried &g, const Trace &trace, int width, const float *__restrict v, const float *__restrict grad_y,
                   float *__restrict grad_k, float *__restrict grad_v, float *__restrict ys) {
  for (int c = 0; c < width; ++c) {
    const float a = trace.a[c], b = trace.b[c], ga = g.a[c], gb = g.b[c];
    const float out_past = trace.out_past[c], out_now = trace.out_now[c];
    const float in_past = trace.in_past[c], in_now = trace.in_now[c];
    const float inverse = 1.0f / (out_past * b + out_now);
    const float y = (out_past * a + out_now * v[c]) * inverse;
    const float g_sum = grad_y[c] * inverse;
    const float from_y = out_past * (b * v[c] - a) * inverse;  // v - y, without the cancellation
    const float g_first = out_now * g_sum * from_y;
    const float to_past = in_past == 1.0f ? (in_now == 1.0f ? 0.5f : 1.0f) : 0.0f;
    const float excess = to_past * g.o[c];
    grad_v[c] = out_now * g_sum + in_now * ga;
    grad_k[c] = g_first + in_now * (ga * v[c] + gb) + (g.o[c] - excess);
    g.first[c] += g_first;
    g.decay[c] += in_past * (ga * a + gb * b) + excess;
    g.a[c] = out_past * g_sum + in_past * ga;
    g.b[c] = in_past * gb - out_past * g_sum * y;
    g.o[c] = excess;
    ys[c] = y;
  }
}

void multiply_by_gate(float *__restrict y, const float *__restrict gate, int width) {
  for (int c = 0; c < width; ++c) y[c] *= sigmoid(gate[c]);
}

// grad_y and `share`, from which the gate's gradient is share * y
void backward_gate(float *__restrict grad_y, float *__restrict share, const float *__restrict grad,
                   const float *__restrict gate, int width) {
  for (int c = 0; c < width; ++c) {
    float open, shut;
    sigmoids(gate[c], open, shut);
    grad_y[c] = grad[c] * open;
    share[c] = grad_y[c] * shut;
  }
}

// Rows of one step, widened or on their way to be narrowed.
struct Buffers {
  float k[kBlock], v[kBlock], gate[kBlock], y[kBlock], grad[kBlock], grad_k[kBlock], grad_v[kBlock], grad_gate[kBlock];
};

// The backward step at the element `at`, and of the gate around it.
void backward_row(const WkvBackward &op, int64_t at, int width, Carried &g, const Trace &trace, Buffers &rows) {
  const float *v = read(op.in.v, at, width, rows.v), *grad_y = read(op.grad_y, at, width, rows.grad);
  float *grad_k = place(op.grad_k, at, rows.grad_k), *grad_v = place(op.grad_v, at, rows.grad_v);
  if (op.in.gate.data) {
    float *grad_gate = place(op.grad_gate, at, rows.grad_gate);
    backward_gate(rows.k, grad_gate, grad_y, read(op.in.gate, at, width, rows.gate), width);
    backward_step(g, trace, width, v, rows.k, grad_k, grad_v, rows.y);
    for (int c = 0; c < width; ++c) grad_gate[c] *= rows.y[c];
    finish(op.grad_gate, at, width, grad_gate);
  } else {
    backward_step(g, trace, width, v, grad_y, grad_k, grad_v, rows.y);
  }
  finish(op.grad_k, at, width, grad_k);
  finish(op.grad_v, at, width, grad_v);
}

void forward_tile(const WkvForward &op, const Tile &tile) {
  const auto [batch, time, channels] = op.in.shape;
  const int64_t states = 3 * channels;
  const int width = tile.width;
  Running run;
  Buffers rows;
  run.load(op.in.state + tile.batch * states + tile.channel, channels, width);
  float *checkpoint = op.checkpoints + tile.batch * saved(time) * states + tile.channel;
  for (int64_t t = 0; t < time; ++t) {
    if (t > 0 && t % kChunk == 0) {
      run.store(checkpoint, channels, width);
      checkpoint += states;
    }
    const int64_t at = (tile.batch * time + t) * channels + tile.channel;
    float *y = place(op.y, at, rows.y);
    forward_step(run, width, op.in.decay + tile.channel, op.in.first + tile.channel, read(op.in.k, at, width, rows.k),
                 read(op.in.v, at, width, rows.v), y);
    if (op.in.gate.data) multiply_by_gate(y, read(op.in.gate, at, width, rows.gate), width);
    finish(op.y, at, width, y);
  }
  run.store(op.state + tile.batch * states + tile.channel, channels, width);
}

void backward_tile(const WkvBackward &op, const Tile &tile) {
  const auto [batch, time, channels] = op.in.shape;
  const int64_t states = 3 * channels, state_at = tile.batch * states + tile.channel;
  const int width = tile.width;
  const float *decay = op.in.decay + tile.channel, *first = op.in.first + tile.channel;
  Trace traces[kChunk];
  Buffers rows;
  Running run;
  Carried g;
  copy(g.a, op.grad_state + state_at, width);
  copy(g.b, op.grad_state + state_at + channels, width);
  copy(g.o, op.grad_state + state_at + 2 * channels, width);
  float *grad_decay = op.grad_decay + tile.batch * channels + tile.channel;
  float *grad_first = op.grad_first + tile.batch * channels + tile.channel;
  for (int c = 0; c < width; ++c) grad_decay[c] = grad_first[c] = 0.0f;

  const int64_t last = saved(time);
  for (int64_t chunk = last; chunk >= 0; --chunk) {
    const int64_t begin = chunk * kChunk;
    const int steps = static_cast<int>(chunk == last ? time - begin : kChunk);
    const int64_t at = (tile.batch * time + begin) * channels + tile.channel;
    const float *start =
        chunk == 0 ? op.in.state + state_at : op.checkpoints + (tile.batch * last + chunk - 1) * states + tile.channel;
    run.load(start, channels, width);
    for (int s = 0; s < steps; ++s)
      replay_step(run, &traces[s], width, decay, first, read(op.in.k, at + s * channels, width, rows.k),
                  read(op.in.v, at + s * channels, width, rows.v));
    for (int c = 0; c < width; ++c) {
      if (chunk == last) g.o[c] -= g.a[c] * run.a[c] + g.b[c] * run.b[c];
      g.decay[c] = g.first[c] = 0.0f;
    }
    for (int s = steps - 1; s >= 0; --s) backward_row(op, at + s * channels, width, g, traces[s], rows);
    for (int c = 0; c < width; ++c) {
      grad_decay[c] += g.decay[c];
      grad_first[c] += g.first[c];
    }
  }
  run.load(op.in.state + state_at, channels, width);
  for (int c = 0; c < width; ++c) g.o[c] += g.a[c] * run.a[c] + g.b[c] * run.b[c];
  float *grad_state = op.grad_state_in + state_at;
  copy(grad_state, g.a, width);
  copy(grad_state + channels, g.b, width);
  copy(grad_state + 2 * channels, g.o, width);
}

}  // namespace

namespace spikegpt::SPIKEGPT_ISA {

void wkv_forward(const WkvForward &op, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) forward_tile(op, tile_at(op.in.shape, item));
}

void wkv_backward(const WkvBackward &op, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) backward_tile(op, tile_at(op.in.shape, item));
}

}  // namespace spikegpt::SPIKEGPT_ISA
