// The scheduler of the emulation: fibers of one block, meeting points, and the rules that end the process.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <memory>
#include <string>
#include <vector>

#include "emulation.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace qcompile_emulation {
namespace {

constexpr size_t kStack = 128 * 1024;
constexpr int kMostThreads = 1024;

enum class State { kReady, kAtBarrier, kAtMeeting, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  const char* meeting;
  void* operand;
  void* fake_stack;
};

struct Block {
  std::vector<Fiber> fibers = std::vector<Fiber>(kMostThreads);
  ucontext_t scheduler;
  const std::function<void()>* body;
  int threads;
  int current;
  Place place;
  const void* scheduler_stack;
  size_t scheduler_stack_size;
  void* scheduler_fake_stack;
};

thread_local Block* block;
std::string device = "gfx1100";
bool backwards = false;
long launches = 0;

// AddressSanitizer has to be told when the stack changes.
void before_switch(void** save, const void* bottom, size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, bottom, size);
#else
  (void)save, (void)bottom, (void)size;
#endif
}

void after_switch(void* saved, const void** bottom, size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, bottom, size);
#else
  (void)saved, (void)bottom, (void)size;
#endif
}

void leave(Fiber& fiber) {
  const bool last = fiber.state == State::kDone;
  before_switch(last ? nullptr : &fiber.fake_stack, block->scheduler_stack, block->scheduler_stack_size);
  swapcontext(&fiber.context, &block->scheduler);
  after_switch(fiber.fake_stack, nullptr, nullptr);
}

void start() {
  after_switch(nullptr, &block->scheduler_stack, &block->scheduler_stack_size);
  (*block->body)();
  Fiber& fiber = block->fibers[block->current];
  fiber.state = State::kDone;
  leave(fiber);
}

void resume(int thread) {
  Fiber& fiber = block->fibers[thread];
  block->current = thread;
  block->place.thread = thread;
  before_switch(&block->scheduler_fake_stack, fiber.stack.get(), kStack);
  swapcontext(&block->scheduler, &fiber.context);
  after_switch(block->scheduler_fake_stack, nullptr, nullptr);
}

// Every thread waits: either all of them at the barrier, which then opens, or the kernel is wrong.
bool open_barrier() {
  int waiting = 0, done = 0;
  for (int t = 0; t < block->threads; ++t) {
    waiting += block->fibers[t].state == State::kAtBarrier;
    done += block->fibers[t].state == State::kDone;
  }
  if (done == block->threads) return false;
  for (int t = 0; t < block->threads; ++t) {
    const Fiber& fiber = block->fibers[t];
    if (fiber.state == State::kAtMeeting)
      fail("divergent wave operation: lane %d of wave %d waits at %s", t % 32, t / 32, fiber.meeting);
  }
  if (waiting != block->threads) fail("partial barrier: %d of %d threads reached it", waiting, block->threads);
  for (int t = 0; t < block->threads; ++t) block->fibers[t].state = State::kReady;
  return true;
}

void run_block() {
  for (int t = 0; t < block->threads; ++t) {
    Fiber& fiber = block->fibers[t];
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.state = State::kReady;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
  }
  do {
    for (bool moved = true; moved;) {
      moved = false;
      for (int i = 0; i < block->threads; ++i) {
        const int t = backwards ? block->threads - 1 - i : i;
        if (block->fibers[t].state == State::kReady) {
          resume(t);
          moved = true;
        }
      }
    }
  } while (open_barrier());
}

}  // namespace

const char* architecture() { return device.c_str(); }

Place& here() { return block->place; }

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("emulation: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  abort();
}

void barrier() {
  Fiber& fiber = block->fibers[block->current];
  fiber.state = State::kAtBarrier;
  leave(fiber);
}

void meet(const char* name, void* operand, void (*combine)(void* const operands[32])) {
  const int wave = block->current / 32 * 32;
  Fiber& own = block->fibers[block->current];
  own.state = State::kAtMeeting;
  own.meeting = name;
  own.operand = operand;
  int arrived = 0;
  void* operands[32];
  for (int lane = 0; lane < 32; ++lane) {
    const Fiber& other = block->fibers[wave + lane];
    if (other.state != State::kAtMeeting) continue;
    if (strcmp(other.meeting, name) != 0)
      fail("divergent wave operation: %s and %s meet in wave %d", name, other.meeting, wave / 32);
    operands[lane] = other.operand;
    ++arrived;
  }
  if (arrived < 32) {
    leave(own);
    return;
  }
  combine(operands);
  for (int lane = 0; lane < 32; ++lane) block->fibers[wave + lane].state = State::kReady;
}

void combine_shuffle(void* const operands[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    ShuffleOperand* own = static_cast<ShuffleOperand*>(operands[lane]);
    const ShuffleOperand* other = static_cast<const ShuffleOperand*>(operands[lane ^ own->mask]);
    if (other->mask != own->mask) fail("divergent wave operation: shuffles by %d and %d meet", own->mask, other->mask);
    own->result = other->value;
  }
}

void combine_uniform(void* const operands[32]) {
  const int first = *static_cast<const int*>(operands[0]);
  for (int lane = 1; lane < 32; ++lane) {
    const int other = *static_cast<const int*>(operands[lane]);
    if (other != first) fail("a value declared uniform is %d in lane 0 and %d in lane %d", first, other, lane);
  }
}

void run(int x, int y, int z, int threads, const std::function<void()>& body) {
  static thread_local Block own;
  if (threads % 32 != 0 || threads > kMostThreads) fail("a block of %d threads is not a whole number of waves", threads);
  block = &own;
  ++launches;
  block->threads = threads;
  block->body = &body;
  for (int k = 0; k < z; ++k) {
    for (int j = 0; j < y; ++j) {
      for (int i = 0; i < x; ++i) {
        block->place = {0, i, j, k};
        run_block();
      }
    }
  }
}

}  // namespace qcompile_emulation

// For the tests: which architecture the launcher believes to see, in which order threads run between meeting points, and how
// many kernels have been launched.
extern "C" void qcompile_emulation_set_architecture(const char* name) { qcompile_emulation::device = name; }
extern "C" void qcompile_emulation_run_backwards(int yes) { qcompile_emulation::backwards = yes != 0; }
extern "C" long qcompile_emulation_launches() { return qcompile_emulation::launches; }
