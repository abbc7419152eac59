#include "core/interrupt.h"

#include <omp.h>

#include <csignal>

namespace nibble {

namespace {

// Kernels that the GEMM library generates keep things where the stack pointer is not expected to be: a signal
// that is put on the stack in the middle of one was seen to damage memory. So signals go to one thread, and
// to a stack of their own.
alignas(16) char signal_stack[64 << 10];

void use_signal_stack() {
    stack_t stack{};
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof(signal_stack);
    sigaltstack(&stack, nullptr);
}

// Of the pool's, which is as large as it will be.
void mask_signals_of_other_threads(int how) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
#pragma omp parallel
    if (omp_get_thread_num() != 0) pthread_sigmask(how, &signals, nullptr);
}

volatile std::sig_atomic_t stop_flag = 0;

extern "C" void on_interrupt(int) {
    stop_flag = 1;
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
}

void set_handler(void (*handler)(int)) {
    struct sigaction action {};
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART | SA_ONSTACK;  // a write to disk is not cut short
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

InterruptScope::InterruptScope() {
    use_signal_stack();
    mask_signals_of_other_threads(SIG_BLOCK);
    set_handler(on_interrupt);
}
InterruptScope::~InterruptScope() {
    set_handler(SIG_DFL);
    mask_signals_of_other_threads(SIG_UNBLOCK);
}

bool stop_requested() { return stop_flag != 0; }
void request_stop() { stop_flag = 1; }
void clear_stop_request() { stop_flag = 0; }

}  // namespace nibble
