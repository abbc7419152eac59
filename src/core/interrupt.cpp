#include "core/interrupt.h"

#include <csignal>

namespace nibble {

namespace {

volatile std::sig_atomic_t stop_flag = 0;

extern "C" void on_interrupt(int) {
    stop_flag = 1;
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
}

void set_handler(void (*handler)(int)) {
    struct sigaction action {};
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;  // a write to disk is not cut short
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

InterruptScope::InterruptScope() { set_handler(on_interrupt); }
InterruptScope::~InterruptScope() { set_handler(SIG_DFL); }

bool stop_requested() { return stop_flag != 0; }
void request_stop() { stop_flag = 1; }
void clear_stop_request() { stop_flag = 0; }

}  // namespace nibble
