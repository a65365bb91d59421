#include "base/terminal.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>

#include "base/error.h"

namespace bamba {
namespace {

std::atomic<int> interrupt_signal = 0;
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler sets it");
std::atomic<bool> was_resumed = false;
bool patient_with_ctrl_c = false;
int wake_up = -1;  // an eventfd that each signal makes readable: a wait for input misses none, whichever thread takes it

void WakeUp() {
  const int fault = errno;
  const uint64_t one = 1;
  if (write(wake_up, &one, sizeof one) < 0) {  // only where it is readable to the brim
  }
  errno = fault;
}

extern "C" void OnResumed(int) {
  was_resumed = true;
  WakeUp();
}

extern "C" void OnSignal(int signal) {
  int before = 0;
  if (!interrupt_signal.compare_exchange_strong(before, signal)) {
    // A terminal that closes sends SIGHUP more than once, by the shell and by the system: no sign of impatience.
    const bool again = signal != SIGHUP && (!patient_with_ctrl_c || (before != SIGINT && signal != SIGINT));
    if (again) _exit(128 + signal);
    if (before == SIGINT) interrupt_signal = signal;
  }
  WakeUp();
}

}  // namespace

void ReserveStandardStreams() {
  // open() takes the lowest free number.
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) _exit(1);
}

bool IsTerminal(int fd) { return isatty(fd) == 1; }

int TerminalColumns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

void WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    ssize_t n = write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EPIPE && fd == STDOUT_FILENO) throw ReaderGone("standard output: nobody reads it any more");
    if (n < 0) throw Error("{}: cannot be written: {}", fd == STDOUT_FILENO ? "standard output" : "standard error", std::strerror(errno));
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

void IgnoreClosedPipes() {
  struct sigaction action {};
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
}

void CatchInterrupts(bool patient) {
  patient_with_ctrl_c = patient;
  if (wake_up < 0) wake_up = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  struct sigaction action {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction hangup {};
  if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);  // nohup's wish counts
  if (!patient) return;
  action.sa_handler = OnResumed;
  sigaction(SIGCONT, &action, nullptr);
}

int InterruptSignal() { return interrupt_signal; }

bool MustEnd() { return interrupt_signal != 0 && interrupt_signal != SIGINT; }

void ForgetCtrlC() {
  int ctrl_c = SIGINT;
  interrupt_signal.compare_exchange_strong(ctrl_c, 0);
}

bool WaitForInput(int fd, const std::function<void()>& resumed) {
  while (InterruptSignal() == 0) {
    pollfd either[2] = {{.fd = fd, .events = POLLIN, .revents = 0}, {.fd = wake_up, .events = POLLIN, .revents = 0}};
    if (poll(either, 2, -1) < 0) {
      if (errno != EINTR) throw Error("cannot wait for input: {}", std::strerror(errno));
      continue;
    }
    uint64_t signals = 0;
    if (either[1].revents != 0 && read(wake_up, &signals, sizeof signals) > 0) {
      if (was_resumed.exchange(false)) resumed();
      continue;
    }
    if (either[0].revents != 0) return true;
  }
  return false;
}

size_t ReadSome(int fd, char* data, size_t size) {
  while (true) {
    const ssize_t n = read(fd, data, size);
    if (n >= 0) return static_cast<size_t>(n);
    if (errno != EINTR) throw Error("standard input: cannot be read: {}", std::strerror(errno));
  }
}

}  // namespace bamba
