// Graded events: H = leak M + X; n = sign(H) min(ceil(max(|H| - threshold, 0) / unit), levels), or 0 where |n| < smallest.
#include "lanes.h"

namespace {

// Smallest integer >= x, at most `levels`, for 0 <= x; NaN for NaN. Plain SSE2 has no instruction for it, and a call would
// not vectorise.
inline float ceil_positive(float x, float levels) {
  const float to_integer = 8388608.0f;  // 2^23: a float this large has no fraction
  const float bounded = levels < x ? levels : x;
  const float nearest = (bounded + to_integer) - to_integer;
  return nearest < bounded ? nearest + 1.0f : nearest;
}

inline float size_of(float h, bool is_signed) { return is_signed && h < 0.0f ? -h : h; }

inline float count(float h, float threshold, float unit, float levels, float smallest, bool is_signed) {
  const float over = size_of(h, is_signed) - threshold;
  const float sent = ceil_positive((over < 0.0f ? 0.0f : over) / unit, levels);
  const float n = sent < smallest ? 0.0f : sent;
  return is_signed && h < 0.0f ? -n : n;
}

// What |h| must pass for an event to be sent.
inline float onset(float threshold, float unit, float smallest) { return threshold + (smallest - 1.0f) * unit; }

// Whether dn/dh is 1/unit; else it is 0.
inline bool passes_gradient(float h, float threshold, float unit, const EventSettings &set) {
  const float size = size_of(h, set.is_signed), margin = threshold * set.window;
  return (size > onset(threshold, unit, set.smallest) - margin) & (size <= threshold + unit * set.levels + margin);
}

// dn/dh
inline float slope(float h, float threshold, float unit, const EventSettings &set) {
  return passes_gradient(h, threshold, unit, set) ? 1.0f / unit : 0.0f;
}

inline float reset(float h, float n, float unit, bool hard) { return hard ? (n == 0.0f ? h : 0.0f) : h - n * unit; }

// The settings of one tile's channels.
struct Local {
  const EventSettings &set;
  const float *threshold, *unit, *leak;

  template <class Op>
  Local(const Op &op, int64_t channel)
      : set(op.set), threshold(op.set.threshold + channel), unit(op.set.unit + channel), leak(op.leak + channel) {}
};

void forward_step(float *__restrict membrane, int width, const Local &at, const float *__restrict x,
                  float *__restrict events) {
  const auto [levels, smallest, window, is_signed, hard, thresholds, units] = at.set;
  const float *__restrict threshold = at.threshold, *__restrict unit = at.unit, *__restrict leak = at.leak;
  for (int c = 0; c < width; ++c) {
    const float h = leak[c] * membrane[c] + x[c];
    const float n = count(h, threshold[c], unit[c], levels, smallest, is_signed);
    events[c] = n;
    membrane[c] = reset(h, n, unit[c], hard);
  }
}

// Also keeps the membrane before the step (`before`) and after charging (`charged`).
void replay_step(float *__restrict membrane, float *__restrict before, float *__restrict charged, int width,
                 const Local &at, const float *__restrict x) {
  const auto [levels, smallest, window, is_signed, hard, thresholds, units] = at.set;
  const float *__restrict threshold = at.threshold, *__restrict unit = at.unit, *__restrict leak = at.leak;
  for (int c = 0; c < width; ++c) {
    const float h = leak[c] * membrane[c] + x[c];
    before[c] = membrane[c];
    charged[c] = h;
    membrane[c] = reset(h, count(h, threshold[c], unit[c], levels, smallest, is_signed), unit[c], hard);
  }
}

// `grad` holds the gradient of the membrane after the step, and then of the one before it.
template <bool hard>
void backward_step(float *__restrict grad, float *__restrict grad_leak, const float *__restrict before,
                   const float *__restrict charged, int width, const Local &at, const float *__restrict grad_events,
                   float *__restrict grad_x) {
  const EventSettings set = at.set;
  const float *__restrict threshold = at.threshold, *__restrict unit = at.unit, *__restrict leak = at.leak;
  for (int c = 0; c < width; ++c) {
    const float h = charged[c], passed = slope(h, threshold[c], unit[c], set);
    const float cut = hard ? (size_of(h, set.is_signed) > onset(threshold[c], unit[c], set.smallest) ? 1.0f : 0.0f)
                           : unit[c] * passed;
    const float grad_h = grad_events[c] * passed + (grad[c] - grad[c] * cut);
    grad_x[c] = grad_h;
    grad_leak[c] += grad_h * before[c];
    grad[c] = grad_h * leak[c];
  }
}

void forward_tile(const EventForward &op, const Tile &tile) {
  const auto [batch, time, channels] = op.shape;
  const Local local(op, tile.channel);
  float membrane[kBlock], x_row[kBlock], event_row[kBlock];
  copy(membrane, op.membrane + tile.batch * channels + tile.channel, tile.width);
  float *checkpoint = op.checkpoints + tile.batch * saved(time) * channels + tile.channel;
  for (int64_t t = 0; t < time; ++t) {
    if (t > 0 && t % kChunk == 0) {
      copy(checkpoint, membrane, tile.width);
      checkpoint += channels;
    }
    const int64_t at = (tile.batch * time + t) * channels + tile.channel;
    float *events = place(op.events, at, event_row);
    forward_step(membrane, tile.width, local, read(op.x, at, tile.width, x_row), events);
    finish(op.events, at, tile.width, events);
  }
  copy(op.membrane_out + tile.batch * channels + tile.channel, membrane, tile.width);
}

template <bool hard>
void backward_tile(const EventBackward &op, const Tile &tile) {
  const auto [batch, time, channels] = op.shape;
  const int64_t membrane_at = tile.batch * channels + tile.channel;
  const int width = tile.width;
  const Local local(op, tile.channel);
  float grad[kBlock], grad_leak[kBlock], membrane[kBlock], before[kChunk][kBlock], charged[kChunk][kBlock];
  float row[kBlock], grad_row[kBlock];
  float *total = op.grad_leak + membrane_at;
  copy(grad, op.grad_membrane + membrane_at, width);
  for (int c = 0; c < width; ++c) total[c] = 0.0f;
  const int64_t last = saved(time);
  for (int64_t chunk = last; chunk >= 0; --chunk) {
    const int64_t begin = chunk * kChunk;
    const int steps = static_cast<int>(chunk == last ? time - begin : kChunk);
    const int64_t at = (tile.batch * time + begin) * channels + tile.channel;
    const float *start = chunk == 0 ? op.membrane + membrane_at
                                    : op.checkpoints + (tile.batch * last + chunk - 1) * channels + tile.channel;
    copy(membrane, start, width);
    for (int c = 0; c < width; ++c) grad_leak[c] = 0.0f;
    for (int s = 0; s < steps; ++s)
      replay_step(membrane, before[s], charged[s], width, local, read(op.x, at + s * channels, width, row));
    for (int s = steps - 1; s >= 0; --s) {
      const int64_t here = at + s * channels;
      float *grad_x = place(op.grad_x, here, row);
      backward_step<hard>(grad, grad_leak, before[s], charged[s], width, local,
                          read(op.grad_events, here, width, grad_row), grad_x);
      finish(op.grad_x, here, width, grad_x);
    }
    for (int c = 0; c < width; ++c) total[c] += grad_leak[c];
  }
  copy(op.grad_membrane_in + membrane_at, grad, width);
}

// passes: null, or where to put 1 for every input through which the gradient flows, else 0.
template <bool keep>
void point_forward(const EventSettings &given, int64_t channel, int width, const float *__restrict x,
                   float *__restrict events, uint8_t *__restrict passes) {
  const EventSettings set = given;
  const float *__restrict threshold = set.threshold + channel, *__restrict unit = set.unit + channel;
  for (int c = 0; c < width; ++c) {
    events[c] = count(x[c], threshold[c], unit[c], set.levels, set.smallest, set.is_signed);
    if (keep) passes[c] = passes_gradient(x[c], threshold[c], unit[c], set);
  }
}

void point_backward(const float *__restrict unit, int width, const uint8_t *__restrict passes,
                    const float *__restrict grad_events, float *__restrict grad_x) {
  for (int c = 0; c < width; ++c) {
    const float slope = 1.0f / unit[c];
    grad_x[c] = grad_events[c] * (passes[c] != 0 ? slope : 0.0f);
  }
}

}  // namespace

namespace spikegpt::SPIKEGPT_ISA {

void event_forward(const EventForward &op, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) forward_tile(op, tile_at(op.shape, item));
}

void event_backward(const EventBackward &op, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item)
    op.set.hard ? backward_tile<true>(op, tile_at(op.shape, item)) : backward_tile<false>(op, tile_at(op.shape, item));
}

void point_event_forward(const PointEvent &op, int64_t begin, int64_t end) {
  float x_row[kRow], event_row[kRow];
  const auto forward = op.passes ? point_forward<true> : point_forward<false>;
  for (int64_t row = begin; row < end; ++row)
    for (int64_t c = 0; c < op.channels; c += kRow) {
      const int width = static_cast<int>(op.channels - c < kRow ? op.channels - c : kRow);
      const int64_t at = row * op.channels + c;
      float *events = place(op.events, at, event_row);
      forward(op.set, c, width, read(op.x, at, width, x_row), events, op.passes ? op.passes + at : nullptr);
      finish(op.events, at, width, events);
    }
}

void point_event_backward(const PointEventBackward &op, int64_t begin, int64_t end) {
  float grad_row[kRow], out_row[kRow];
  for (int64_t row = begin; row < end; ++row)
    for (int64_t c = 0; c < op.channels; c += kRow) {
      const int width = static_cast<int>(op.channels - c < kRow ? op.channels - c : kRow);
      const int64_t at = row * op.channels + c;
      float *grad_x = place(op.grad_x, at, out_row);
      point_backward(op.unit + c, width, op.passes + at, read(op.grad_events, at, width, grad_row), grad_x);
      finish(op.grad_x, at, width, grad_x);
    }
}

void tally(const Tally &op, int64_t begin, int64_t end) {
  float buffer[kBlock];
  for (int64_t row = begin; row < end; ++row) {
    int32_t fired = 0, largest = 0;
    for (int64_t channel = 0; channel < op.channels; channel += kBlock) {
      const int width = static_cast<int>(op.channels - channel < kBlock ? op.channels - channel : kBlock);
      const float *events = read(op.events, row * op.stride + channel, width, buffer);
      for (int c = 0; c < width; ++c) {
        fired += events[c] != 0.0f;
        largest += size_of(events[c], true) >= op.levels;
      }
    }
    op.counts[2 * row] = fired;
    op.counts[2 * row + 1] = largest;
  }
}

}  // namespace spikegpt::SPIKEGPT_ISA
