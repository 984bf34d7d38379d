// A pool of threads that execute the phases of one call together.
//
// A phase ends when all of its items are done, not when all threads have arrived: a thread that the system has
// descheduled delays a phase only while it holds an item. Each thread starts with its own share of a phase, so the same
// weights stay in its caches from call to call, and then takes items from the others' shares.

#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace {

class ThreadTeam {
   public:
    // `n_threads` includes the calling thread. The team is smaller if the system grants fewer.
    explicit ThreadTeam(int n_threads) {
        try {
            for (int i = 1; i < n_threads; i++) threads_.emplace_back([this, i] { thread_main(i); });
        } catch (const std::system_error&) {
        }
    }
    int size() const { return 1 + int(threads_.size()); }
    ~ThreadTeam() {
        stopping_ = true;
        wake();
        for (auto& thread : threads_) thread.join();
    }

    // Run `job` in this thread, and in every other thread that wakes before this one has finished. It must not throw.
    void run(void (*job)(void* argument, int index), void* argument) {
        job_ = job;
        argument_ = argument;
        open_ = true;
        wake();
        job(argument, 0);
        open_ = false;
        for (int spins = 0; n_inside_ > 0; spins++) pause(spins);
    }

    // Back off while spinning: yield the core after some thousand spins.
    static void pause(int spins) {
        if (spins > 4096) std::this_thread::yield();
#if defined(__x86_64__) || defined(__i386__)
        else __builtin_ia32_pause();
#endif
    }

    // Wake sleeping threads shortly before a call: waking takes longer than many phases.
    void wake() {
        n_wakes_.fetch_add(1);
        n_wakes_.notify_all();
    }

   private:
    static constexpr std::chrono::microseconds SPIN_TIME{400};  // longer than the work between two steps

    void thread_main(int index) {
        unsigned seen = 0;
        for (;;) {
            // Spin, since the next call usually follows soon and waking costs about 10 us; then sleep. Measured by the
            // clock, because the duration of a pause instruction differs tenfold between processors.
            const auto until = std::chrono::steady_clock::now() + SPIN_TIME;
            for (int spins = 0; n_wakes_ == seen; spins++) {
                pause(spins);
                if (spins % 64 == 63 && std::chrono::steady_clock::now() > until) break;
            }
            n_wakes_.wait(seen);
            seen = n_wakes_;
            if (stopping_) return;
            n_inside_++;
            if (open_) job_(argument_, index);  // `run` returns only when n_inside_ is 0
            n_inside_--;
        }
    }

    std::vector<std::thread> threads_;
    void (*job_)(void*, int) = nullptr;
    void* argument_ = nullptr;
    std::atomic<unsigned> n_wakes_{0};
    std::atomic<int> n_inside_{0};
    std::atomic<bool> open_{false}, stopping_{false};
};

// The items of the phases of one call: which are claimed, and how many are done.
class Phases {
   public:
    Phases(int64_t n_phases, int n_threads)
        : n_threads_(n_threads), claimed_(size_t(n_phases * n_threads)), done_(size_t(n_phases)) {}

    // The first item of a thread's own share.
    int64_t share_begin(int64_t n_items, int index) const { return n_items * index / n_threads_; }

    // Process items of a phase until none is left; return when all are done, by any thread.
    template <class Fn>
    void parallel_for(int64_t phase, int64_t n_items, int index, Fn fn) {
        std::atomic<int64_t>& done = done_[size_t(phase)].value;
        const int64_t chunk = std::max<int64_t>(1, n_items / n_threads_ / CHUNKS_PER_SHARE);
        int64_t n_mine = 0;
        for (int turn = 0; turn < n_threads_; turn++) {
            const int owner = (index + turn) % n_threads_;
            const int64_t begin = share_begin(n_items, owner), end = share_begin(n_items, owner + 1);
            std::atomic<int64_t>& claimed = claimed_[size_t(phase * n_threads_ + owner)].value;
            for (int64_t i; (i = begin + claimed.fetch_add(chunk, std::memory_order_relaxed)) < end;)
                for (const int64_t stop = std::min(i + chunk, end); i < stop; i++, n_mine++) fn(i);
        }
        if (n_mine) done.fetch_add(n_mine, std::memory_order_acq_rel);
        for (int spins = 0; done.load(std::memory_order_acquire) < n_items; spins++) ThreadTeam::pause(spins);
    }

   private:
    // Items are claimed in chunks: an atomic addition makes the processor wait for its pending writes.
    static constexpr int64_t CHUNKS_PER_SHARE = 32;

    struct alignas(64) Counter {  // one cache line each, against false sharing
        std::atomic<int64_t> value{0};
    };
    const int n_threads_;
    std::vector<Counter> claimed_, done_;
};

}  // namespace
