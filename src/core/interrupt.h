// Ctrl-C. Long loops ask stop_requested() between units of work, leave their files whole, and return.
#pragma once

namespace nibble {

// While one lives, the first SIGINT or SIGTERM only sets the flag; the second ends the process at once.
// Commands without a loop that polls do not make one, so that the signal ends them as usual.
class InterruptScope {
  public:
    InterruptScope();
    ~InterruptScope();
    InterruptScope(const InterruptScope&) = delete;
    InterruptScope& operator=(const InterruptScope&) = delete;
};

bool stop_requested();
// Sets the flag as a signal would, and clears it again.
void request_stop();
void clear_stop_request();

}  // namespace nibble
