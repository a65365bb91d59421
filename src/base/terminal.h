#pragma once

#include <string_view>

namespace bamba {

bool IsTerminal(int fd);
int TerminalColumns();  // of standard error; 80 where unknown

// All of the bytes or an Error with the system's reason (a full disk, a closed pipe); SIGPIPE must be ignored, see CatchSignals.
void WriteAll(int fd, std::string_view bytes);

// From now on Ctrl-C and SIGTERM set a flag instead of ending the process, and a closed pipe is an error of write. A second Ctrl-C ends it at once.
void CatchSignals();
int InterruptSignal();  // the signal that came (SIGINT, SIGTERM), or 0

}  // namespace bamba
