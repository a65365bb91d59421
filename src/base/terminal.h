#pragma once

#include <cstddef>
#include <functional>
#include <string_view>

namespace bamba {

inline constexpr int kStandardInput = 0, kStandardOutput = 1, kStandardError = 2;

// Opens what of the three the caller closed, such that using it fails as before: without this, the next file opened would take its number, be read as standard
// input or be written into by messages. For the start of a program.
void ReserveStandardStreams();

bool IsTerminal(int fd);
int TerminalColumns();  // of standard error; 80 where unknown

// All of the bytes or an Error with the system's reason (a full disk); ReaderGone where standard output is a pipe that was closed, after IgnoreClosedPipes.
void WriteAll(int fd, std::string_view bytes);

// From now on writing to a closed pipe is an error instead of the process's end.
void IgnoreClosedPipes();

// From now on Ctrl-C, SIGTERM and SIGHUP (the terminal was closed) set a flag, for work that looks at it and ends in good order. A second Ctrl-C or SIGTERM
// ends the process at once; but where `patient`, Ctrl-C never does, for programs that go on after it.
void CatchInterrupts(bool patient = false);
int InterruptSignal();  // the signal that came (SIGINT, SIGTERM, SIGHUP), or 0
bool MustEnd();         // one came that nobody takes back: not Ctrl-C
void ForgetCtrlC();     // it was obeyed; the others stay

// Waits until `fd` has bytes or is at its end. False where a caught signal came, be it before the call. `resumed` is called where the process was stopped
// (Ctrl-Z) and goes on, after a `patient` CatchInterrupts: the terminal's settings are the shell's then.
bool WaitForInput(int fd, const std::function<void()>& resumed);
// At most `size` bytes, 0 at the end. Throws Error with the system's reason.
size_t ReadSome(int fd, char* data, size_t size);

}  // namespace bamba
