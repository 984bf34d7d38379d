// Threads that share the work of a call, phase by phase.
//
// A phase is over when its pieces are done, and not when all threads have come: one that the system has put aside is
// not waited for unless it holds a piece, so a busy machine costs what it takes and no more. Each thread has its own
// share of every phase, which keeps the weights it reads near it, and helps the others when it has finished.

#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace {

class Team {
   public:
    // As many threads as asked for, or as the system grants; the caller's own is one of them.
    explicit Team(int n_threads) {
        try {
            for (int i = 1; i < n_threads; i++) threads_.emplace_back([this, i] { work(i); });
        } catch (const std::system_error&) {
        }
    }
    int size() const { return 1 + int(threads_.size()); }
    ~Team() {
        over_ = true;
        wake();
        for (auto& thread : threads_) thread.join();
    }

    // Run `job` in this thread, and in those of the others that come before it is over. It must not throw.
    void run(void (*job)(void* argument, int index), void* argument) {
        job_ = job;
        argument_ = argument;
        open_ = true;
        wake();
        job(argument, 0);
        open_ = false;
        for (int spins = 0; inside_ > 0; spins++) rest(spins);
    }

    static void rest(int spins) {
        if (spins > 4096) std::this_thread::yield();  // somebody else may need this core
#if defined(__x86_64__) || defined(__i386__)
        else __builtin_ia32_pause();
#endif
    }

    // Let threads that sleep get up, for a call that will come at once: this takes them longer than many a phase.
    void wake() {
        calls_.fetch_add(1);
        calls_.notify_all();
    }

   private:
    static constexpr std::chrono::microseconds AWAKE{400};  // longer than what is done between two steps

    void work(int index) {
        unsigned seen = 0;
        for (;;) {
            // Awake for a moment, since the next call mostly follows soon; then asleep. By the clock, for what a pause
            // takes differs by a factor of ten between processors; getting up costs a thread some ten microseconds.
            const auto until = std::chrono::steady_clock::now() + AWAKE;
            for (int spins = 0; calls_ == seen; spins++) {
                rest(spins);
                if (spins % 64 == 63 && std::chrono::steady_clock::now() > until) break;
            }
            calls_.wait(seen);
            seen = calls_;
            if (over_) return;
            inside_++;
            if (open_) job_(argument_, index);  // a call cannot end while somebody is inside
            inside_--;
        }
    }

    std::vector<std::thread> threads_;
    void (*job_)(void*, int) = nullptr;
    void* argument_ = nullptr;
    std::atomic<unsigned> calls_{0};
    std::atomic<int> inside_{0};
    std::atomic<bool> open_{false}, over_{false};
};

// The pieces of the phases of one call, and who has taken which.
class Phases {
   public:
    Phases(int64_t n_phases, int n_threads) : size_(n_threads), taken_(n_phases * n_threads), done_(n_phases) {}

    // The first piece of a thread's own share.
    int64_t first(int64_t n_pieces, int index) const { return n_pieces * index / size_; }

    // Do pieces of a phase until none is left, and return when all are done, by whomever.
    template <class Piece>
    void share(int64_t phase, int64_t n_pieces, int index, Piece piece) {
        std::atomic<int64_t>& done = done_[phase].value;
        const int64_t handful = std::max<int64_t>(1, n_pieces / size_ / HANDFULS);
        int64_t mine = 0;
        for (int turn = 0; turn < size_; turn++) {
            const int owner = (index + turn) % size_;
            const int64_t begin = first(n_pieces, owner), end = first(n_pieces, owner + 1);
            std::atomic<int64_t>& taken = taken_[phase * size_ + owner].value;
            for (int64_t i; (i = begin + taken.fetch_add(handful, std::memory_order_relaxed)) < end;)
                for (const int64_t stop = std::min(i + handful, end); i < stop; i++, mine++) piece(i);
        }
        if (mine) done.fetch_add(mine, std::memory_order_acq_rel);
        for (int spins = 0; done.load(std::memory_order_acquire) < n_pieces; spins++) Team::rest(spins);
    }

   private:
    // A thread takes a handful at once: taking makes the processor wait until all that it has written is written.
    static constexpr int64_t HANDFULS = 32;

    struct alignas(64) Counter {  // a cache line each: threads would wait for each other's otherwise
        std::atomic<int64_t> value{0};
    };
    const int size_;
    std::vector<Counter> taken_, done_;
};

}  // namespace
