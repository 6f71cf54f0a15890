// Leaky integrate-and-fire: H = V + (X - V) / tau, S = [H >= threshold], V = (1 - S) H; ATan surrogate.
#include "lanes.h"

namespace {

inline float charge(float membrane, float x, float tau) { return membrane + (x - membrane) / tau; }

void forward_step(float *__restrict membrane, int width, LifSettings set, const float *__restrict x,
                  float *__restrict spikes) {
  for (int c = 0; c < width; ++c) {
    const float h = charge(membrane[c], x[c], set.tau);
    const bool fires = h >= set.threshold;
    spikes[c] = fires ? 1.0f : 0.0f;
    membrane[c] = fires ? 0.0f : h;
  }
}

void replay_step(float *__restrict membrane, float *__restrict charged, int width, LifSettings set,
                 const float *__restrict x) {
  for (int c = 0; c < width; ++c) {
    const float h = charge(membrane[c], x[c], set.tau);
    charged[c] = h;
    membrane[c] = h >= set.threshold ? 0.0f : h;
  }
}

// `grad` holds the gradient of the membrane after the step, and then of the one before it.
void backward_step(float *__restrict grad, const float *__restrict charged, int width, LifSettings set,
                   const float *__restrict grad_spikes, float *__restrict grad_x) {
  const float peak = set.alpha / 2, slope = 1.57079633f * set.alpha, share = 1.0f / set.tau;
  for (int c = 0; c < width; ++c) {
    const float h = charged[c], z = slope * (h - set.threshold);
    const float surrogate = peak / (1.0f + z * z);
    const float kept = h >= set.threshold ? 0.0f : grad[c];
    const float grad_h = kept + (grad_spikes[c] - grad[c] * h) * surrogate;
    grad_x[c] = grad_h * share;
    grad[c] = grad_h - grad_h * share;
  }
}

void add(float *__restrict spikes, const float *__restrict residual, int width) {
  for (int c = 0; c < width; ++c) spikes[c] += residual[c];
}

void forward_tile(const LifForward &op, const Tile &tile) {
  const auto [batch, time, channels] = op.shape;
  float membrane[kBlock], row[kBlock];
  copy(membrane, op.membrane + tile.batch * channels + tile.channel, tile.width);
  float *checkpoint = op.checkpoints + tile.batch * saved(time) * channels + tile.channel;
  for (int64_t t = 0; t < time; ++t) {
    if (t > 0 && t % kChunk == 0) {
      copy(checkpoint, membrane, tile.width);
      checkpoint += channels;
    }
    const int64_t at = (tile.batch * time + t) * channels + tile.channel;
    forward_step(membrane, tile.width, op.set, read(op.x, at, tile.width, row), op.spikes + at);
    if (op.residual) add(op.spikes + at, op.residual + at, tile.width);
  }
  copy(op.membrane_out + tile.batch * channels + tile.channel, membrane, tile.width);
}

void backward_tile(const LifBackward &op, const Tile &tile) {
  const auto [batch, time, channels] = op.shape;
  const int64_t membrane_at = tile.batch * channels + tile.channel;
  float grad[kBlock], membrane[kBlock], row[kBlock], charged[kChunk][kBlock];
  copy(grad, op.grad_membrane + membrane_at, tile.width);
  const int64_t last = saved(time);
  for (int64_t chunk = last; chunk >= 0; --chunk) {
    const int64_t begin = chunk * kChunk;
    const int steps = static_cast<int>(chunk == last ? time - begin : kChunk);
    const int64_t at = (tile.batch * time + begin) * channels + tile.channel;
    const float *start = chunk == 0 ? op.membrane + membrane_at
                                    : op.checkpoints + (tile.batch * last + chunk - 1) * channels + tile.channel;
    copy(membrane, start, tile.width);
    for (int s = 0; s < steps; ++s)
      replay_step(membrane, charged[s], tile.width, op.set, read(op.x, at + s * channels, tile.width, row));
    for (int s = steps - 1; s >= 0; --s) {
      const int64_t here = at + s * channels;
      float *grad_x = place(op.grad_x, here, row);
      backward_step(grad, charged[s], tile.width, op.set, op.grad_spikes + here, grad_x);
      finish(op.grad_x, here, tile.width, grad_x);
    }
  }
  copy(op.grad_membrane_in + membrane_at, grad, tile.width);
}

}  // namespace

namespace spikegpt::SPIKEGPT_ISA {

void lif_forward(const LifForward &op, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) forward_tile(op, tile_at(op.shape, item));
}

void lif_backward(const LifBackward &op, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) backward_tile(op, tile_at(op.shape, item));
}

}  // namespace spikegpt::SPIKEGPT_ISA
