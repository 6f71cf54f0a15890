// The products of one thread: events are listed once, then every panel of a part reads their rows, and what the next product
// will read is fetched meanwhile. Local to the translation unit, which says what a `Model` and its `Value` are, and what
// product.h wants to know.
#pragma once

#include "events.h"

namespace {

using namespace spikegpt::engine;

class Products {
 public:
  using Site = Model::Site;
  using Pass = PassOf<Value>;

  // The worker's scratch holds outputs that would pass the end of a row. `pass` is looked at only while a part is done:
  // between parts it may be another one.
  Products(WorkerOf<Value> &worker, const Pass &pass, int levels) : worker_(worker), pass_(pass), levels_(levels) {}

  // Lists the events of every token into a slot, once for all parts that this thread does of the section.
  void list(const Site &site, int slot, int part, uint64_t section) {
    const bool listed = worker_.listed[slot] == section;
    worker_.listed[slot] = section;
    for (int t = 0; t < pass_.tokens; ++t) {
      const int8_t *events = site.events + static_cast<int64_t>(t) * site.stride;
      const Events &into = worker_.lists[slot][t];
      if (!listed) gather(site, events, pass_.dense, into);
      if (part == 0 && pass_.counts) count(site, events, into, levels_, pass_.counts[site.index]);
    }
  }

  // Asks for the first rows that a part of the product will read, of inputs that are known to fire: those of one token in
  // `among`, from a multiple of 64 on. Of `rows` that may be asked for, returns how many are left.
  int ask_rows(const Site &site, int part, Channels among, int rows) {
    if (pass_.tokens > 1 || pass_.dense || site.panels_of[part] == site.panels_of[part + 1]) return 0;
    const Panel &panel = site.panels[site.panels_of[part]];
    const uint8_t *step[kStep];
    int count = 0;
    for (int base = among.begin; base < among.end; base += 64) {
      for (uint64_t mask = nonzero(site.events + base); mask; mask &= mask - 1) {
        if (rows <= 0) return 0;
        step[count++] = panel.weights + static_cast<size_t>(base + lowest(mask)) * panel.stride;
        if (count < kStep) continue;
        for (int turn = 0; turn < panel.blocks; ++turn)
          for (const uint8_t *row : step) prefetch(row + 64 * block_at(turn, panel.blocks, site.bits == 8));
        rows -= kStep;
        count = 0;
      }
    }
    return rows;
  }

  // How many rows of a part of the product are worth asking for.
  int rows_ahead(const Site &site, int part) const {
    const int panel = site.panels_of[part];
    return panel == site.panels_of[part + 1] ? 0 : kAhead / (64 * site.panels[panel].blocks) + kStep;
  }

  // A part of a product of every token; row t of the outputs begins at out + t * stride.
  void multiply(const Site &site, int slot, int part, Value *out, int64_t stride) {
    multiply_into(site, slot, part, stride, pass_.tokens, [&](int t) { return out + t * stride; });
  }

  // The same for the tokens, `wanted` in number, for which row_of(t) says where a row of `stride` outputs goes, not null.
  // One token goes through whole panels, several through a few blocks at a time that stay in the cache.
  template <class RowOf>
  void multiply_into(const Site &site, int slot, int part, int64_t stride, int wanted, const RowOf &row_of) {
    const bool together = wanted > 1;
    for (int p = site.panels_of[part]; p < site.panels_of[part + 1]; ++p) {
      const Panel &panel = site.panels[p];
      const int step = together ? narrow_blocks(site.bits) : panel.blocks;
      for (int block = 0; block < panel.blocks; block += step) {
        const int blocks = panel.blocks - block < step ? panel.blocks - block : step;
        for (int t = 0; t < pass_.tokens; ++t)
          if (Value *out = row_of(t)) multiply_blocks(site, panel, block, blocks, worker_.lists[slot][t], out, stride);
      }
    }
  }

  void flush() {
    if (waiting_) carry_out();
    waiting_ = false;
  }

 private:
  // Runs the job before this one, now that it is known what to fetch meanwhile.
  void submit(const Job &job) {
    Job &slot = jobs_[1 - latest_];
    slot = job;
    const Channels outputs{0, job.blocks * outputs_per_block(job.site->bits)};
    if (job.last) ask(job.scale, outputs);
    if (job.steps) ask(job.steps, outputs);
    ahead_.then(&slot);
    if (waiting_) carry_out();
    latest_ = 1 - latest_;
    waiting_ = true;
  }

  void carry_out() {
    const Job &job = jobs_[latest_];
    product(job, ahead_);
    if (job.copy) std::memcpy(job.copy, job.out, sizeof(Value) * job.copied);
  }

  // Where the outputs of the last block would pass the end of the row they go through the scratch.
  void multiply_blocks(const Site &site, const Panel &panel, int block, int blocks, const Events &events, Value *out,
                       int64_t stride) {
    const int width = outputs_per_block(site.bits), at = panel.begin + block * width;
    const bool by_scratch = at + blocks * width > stride;
    for (int group = 0; group < site.groups; ++group) {
      const int from = events.begin[group];
      const bool last = group == site.groups - 1;
      const uint8_t *steps = steps_of(site, group);
      submit({&site, panel.weights + 64 * block, panel.stride, blocks, events.input + from, events.value + from,
              events.begin[group + 1] - from, events.sum[group],
              scale_of(site, group) + at, steps ? steps + at : nullptr, worker_.totals,
              by_scratch ? worker_.scratch : out + at, group > 0, last, by_scratch && last ? out + at : nullptr, site.outputs - at,
              site.bits == 8 && 2 * (events.begin[group + 1] - from) < site.group_inputs});
    }
  }

  WorkerOf<Value> &worker_;
  const Pass &pass_;
  const int levels_;
  Job jobs_[2] = {};  // the one that waits, and the one before it or after it
  int latest_ = 0;
  Ahead ahead_;
  bool waiting_ = false;
};

}  // namespace
