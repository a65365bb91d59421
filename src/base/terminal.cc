#include "base/terminal.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "base/error.h"

namespace bamba {
namespace {

volatile std::sig_atomic_t interrupt_signal = 0;

extern "C" void OnSignal(int signal) {
  if (interrupt_signal) _exit(128 + signal);
  interrupt_signal = signal;
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
    if (n < 0) throw Error("{}: cannot be written: {}", fd == STDOUT_FILENO ? "standard output" : "standard error", std::strerror(errno));
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

void IgnoreClosedPipes() {
  struct sigaction action {};
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
}

void CatchInterrupts() {
  struct sigaction action {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

int InterruptSignal() { return interrupt_signal; }

}  // namespace bamba
