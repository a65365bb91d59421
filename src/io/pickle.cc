#include "io/pickle.h"

#include <cstring>
#include <limits>
#include <string_view>
#include <unordered_map>

#include "base/check.h"
#include "base/error.h"

namespace bamba {
namespace {

// Opcodes of protocol 2 (Python's pickletools names them).
enum Opcode : uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersistentId = 'Q',
  kReduce = 'R',
  kBinUnicode = 'X',
  kEmptyList = ']',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kEmptyTuple = ')',
  kSetItems = 'u',
  kEmptyDict = '}',
  kBinFloat = 'G',
  kProto = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
};

struct StorageType {
  std::string_view torch, dtype;
};
constexpr StorageType kStorageTypes[] = {{"FloatStorage", "F32"}, {"BFloat16Storage", "BF16"}, {"HalfStorage", "F16"},  {"DoubleStorage", "F64"},
                                         {"LongStorage", "I64"},  {"IntStorage", "I32"},       {"ShortStorage", "I16"}, {"CharStorage", "I8"},
                                         {"ByteStorage", "U8"},   {"BoolStorage", "BOOL"}};

constexpr std::string_view kOrderedDict = "collections OrderedDict", kRebuildTensor = "torch._utils _rebuild_tensor_v2",
                           kRebuildParameter = "torch._utils _rebuild_parameter";

// Far above any checkpoint (some ten values a tensor), far below what would hurt.
constexpr size_t kMaxDims = 64;
constexpr size_t kMaxValues = size_t{1} << 22;

enum class Kind : uint8_t { kNone, kNumber, kText, kTuple, kList, kDict, kGlobal, kStorage, kTensor };

// Values refer to each other by index into one array, so that cycles and deep nesting cost nothing.
struct Value {
  Kind kind = Kind::kNone;
  int64_t number = 0;         // ints and bools; a storage's elements
  std::string text;           // kText, kGlobal "module name"; a storage's dtype
  std::vector<size_t> items;  // a dict's keys and values in turn; a storage's key; a tensor's storage, offset, shape, stride
};

class Interpreter {
 public:
  Interpreter(std::span<const char> bytes, const std::string& where) : bytes_(bytes), where_(where) {}

  size_t Run() {
    while (true) {
      const uint8_t op = Read<uint8_t>();
      if (op == kStop) return Pop();
      Step(op);
    }
  }

  const Value& At(size_t id) const { return values_[id]; }

  [[noreturn]] void Fail(const std::string& what) const {
    throw Error("{}: its pickle is damaged or of a kind that torch.save does not write for a state dict ({}, near byte {})", where_, what, at_);
  }

 private:
  template <typename T>
  T Read() {
    T value;
    std::memcpy(&value, Take(sizeof value), sizeof value);
    return value;
  }

  const char* Take(size_t n) {
    if (n > bytes_.size() - at_) Fail("it ends early");
    at_ += n;
    return bytes_.data() + at_ - n;
  }

  std::string Line() {
    const size_t begin = at_;
    while (*Take(1) != '\n') {
    }
    return std::string(bytes_.data() + begin, at_ - 1 - begin);
  }

  size_t Make(Value value) {
    if (values_.size() >= kMaxValues) Fail("too many values");
    values_.push_back(std::move(value));
    return values_.size() - 1;
  }
  void Push(Value value) { stack_.push_back(Make(std::move(value))); }
  void PushNumber(int64_t n) { Push({.kind = Kind::kNumber, .number = n}); }

  size_t Pop() {
    if (stack_.empty() || (!marks_.empty() && stack_.size() <= marks_.back())) Fail("its stack is empty");
    const size_t id = stack_.back();
    stack_.pop_back();
    return id;
  }
  // The value below those that an opcode took, which stays on the stack.
  Value& Top(Kind kind) {
    const size_t id = Pop();
    stack_.push_back(id);
    if (values_[id].kind != kind) Fail("a value of another kind was expected");
    return values_[id];
  }
  std::vector<size_t> PopToMark() {
    if (marks_.empty()) Fail("a mark is missing");
    std::vector<size_t> items(stack_.begin() + static_cast<ptrdiff_t>(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return items;
  }
  void PushTuple(size_t n) {
    std::vector<size_t> items(n);
    for (size_t i = n; i-- > 0;) items[i] = Pop();
    Push({.kind = Kind::kTuple, .items = std::move(items)});
  }
  void Extend(Kind kind, const std::vector<size_t>& items) {
    if (kind == Kind::kDict && items.size() % 2 != 0) Fail("a key without a value");
    Value& target = Top(kind);
    target.items.insert(target.items.end(), items.begin(), items.end());
  }

  void Step(uint8_t op);
  void ReadLong();
  void ReadGlobal();
  void Persistent();
  void Reduce();

  std::span<const char> bytes_;
  const std::string& where_;
  size_t at_ = 0;
  std::vector<Value> values_;
  std::vector<size_t> stack_, marks_;
  std::unordered_map<uint32_t, size_t> memo_;
};

void Interpreter::Step(uint8_t op) {
  const auto put = [&](uint32_t key) {
    const size_t id = Pop();
    stack_.push_back(id);
    memo_[key] = id;
  };
  const auto get = [&](uint32_t key) {
    const auto it = memo_.find(key);
    if (it == memo_.end()) Fail("a memo that was never set");
    stack_.push_back(it->second);
  };
  switch (op) {
    case kProto:
      if (const uint8_t version = Read<uint8_t>(); version != 2) throw Error("{}: its pickle has protocol {}; expected 2, torch.save's own", where_, version);
      break;
    case kMark: marks_.push_back(stack_.size()); break;
    case kPop: Pop(); break;
    case kNone: Push({}); break;
    case kNewTrue: PushNumber(1); break;
    case kNewFalse: PushNumber(0); break;
    case kBinInt: PushNumber(Read<int32_t>()); break;
    case kBinInt1: PushNumber(Read<uint8_t>()); break;
    case kBinInt2: PushNumber(Read<uint16_t>()); break;
    case kLong1: ReadLong(); break;
    case kBinFloat: Take(8), Push({}); break;  // no float matters in a state dict
    case kBinUnicode: {
      const uint32_t size = Read<uint32_t>();
      Push({.kind = Kind::kText, .text = std::string(Take(size), size)});
      break;
    }
    case kEmptyTuple: PushTuple(0); break;
    case kTuple1: PushTuple(1); break;
    case kTuple2: PushTuple(2); break;
    case kTuple3: PushTuple(3); break;
    case kTuple: {
      std::vector<size_t> items = PopToMark();
      Push({.kind = Kind::kTuple, .items = std::move(items)});
      break;
    }
    case kEmptyList: Push({.kind = Kind::kList}); break;
    case kEmptyDict: Push({.kind = Kind::kDict}); break;
    case kAppend: Extend(Kind::kList, {Pop()}); break;
    case kAppends: Extend(Kind::kList, PopToMark()); break;
    case kSetItem: {
      const size_t value = Pop(), key = Pop();
      Extend(Kind::kDict, {key, value});
      break;
    }
    case kSetItems: Extend(Kind::kDict, PopToMark()); break;
    case kBinPut: put(Read<uint8_t>()); break;
    case kLongBinPut: put(Read<uint32_t>()); break;
    case kBinGet: get(Read<uint8_t>()); break;
    case kLongBinGet: get(Read<uint32_t>()); break;
    case kGlobal: ReadGlobal(); break;
    case kBinPersistentId: Persistent(); break;
    case kReduce: Reduce(); break;
    case kBuild: Pop(), Top(Kind::kDict); break;  // a state dict's _metadata
    default: Fail(fmt::format("opcode 0x{:02x}", op));
  }
}

void Interpreter::ReadLong() {
  const uint8_t size = Read<uint8_t>();
  const char* digits = Take(size);  // little-endian two's complement
  if (size > sizeof(int64_t)) Fail("a number of more than 64 bits");
  int64_t value = size > 0 && digits[size - 1] < 0 ? -1 : 0;
  std::memcpy(&value, digits, size);
  PushNumber(value);
}

void Interpreter::ReadGlobal() {
  const std::string module = Line(), name = Line(), full = module + " " + name;
  bool known = full == kOrderedDict || full == kRebuildTensor || full == kRebuildParameter;
  for (const StorageType& type : kStorageTypes) known |= module == "torch" && name == type.torch;
  // Anything else would have to be executed.
  if (!known) {
    std::string shown = module + "." + name;
    for (char& c : shown)
      if (c < 0x20 || c > 0x7e) c = '?';
    throw Error("{}: its pickle asks for {}, which bamba does not execute; save only the model's state dict of tensors", where_, shown.substr(0, 200));
  }
  Push({.kind = Kind::kGlobal, .text = full});
}

// ('storage', class, key, location, elements)
void Interpreter::Persistent() {
  const Value& id = At(Pop());
  if (id.kind != Kind::kTuple || id.items.size() != 5) Fail("a persistent id that is no storage");
  const Value &tag = At(id.items[0]), &type = At(id.items[1]), &key = At(id.items[2]), &elements = At(id.items[4]);
  if (tag.text != "storage" || type.kind != Kind::kGlobal || key.kind != Kind::kText || elements.kind != Kind::kNumber || elements.number < 0)
    Fail("a persistent id that is no storage");
  for (const StorageType& known : kStorageTypes) {
    if (type.text != "torch " + std::string(known.torch)) continue;
    Value storage{.kind = Kind::kStorage, .number = elements.number, .text = std::string(known.dtype), .items = {id.items[2]}};
    return Push(std::move(storage));
  }
  Fail("a storage of another class");
}

void Interpreter::Reduce() {
  const Value args = At(Pop()), callee = At(Pop());
  if (args.kind != Kind::kTuple || callee.kind != Kind::kGlobal) Fail("a call of something else than a function");
  if (callee.text == kOrderedDict && args.items.empty()) return Push({.kind = Kind::kDict});
  if (callee.text == kRebuildParameter && args.items.size() == 3 && At(args.items[0]).kind == Kind::kTensor) return stack_.push_back(args.items[0]);
  if (callee.text != kRebuildTensor || args.items.size() < 6 || args.items.size() > 7) Fail("a call with other arguments than torch.save's");
  const Value &storage = At(args.items[0]), &offset = At(args.items[1]), &shape = At(args.items[2]), &stride = At(args.items[3]);
  bool sound = storage.kind == Kind::kStorage && offset.kind == Kind::kNumber && offset.number >= 0 && shape.kind == Kind::kTuple &&
               stride.kind == Kind::kTuple && shape.items.size() == stride.items.size() && shape.items.size() <= kMaxDims;
  if (sound)
    for (const Value* dims : {&shape, &stride})
      for (size_t item : dims->items) sound = sound && At(item).kind == Kind::kNumber && At(item).number >= 0;
  if (!sound) Fail("a tensor of impossible description");
  Push({.kind = Kind::kTensor, .items = {args.items.begin(), args.items.begin() + 4}});
}

PickledTensor Describe(const Interpreter& in, const std::string& name, const Value& value) {
  const Value& storage = in.At(value.items[0]);
  PickledTensor t{
      .name = name, .dtype = storage.text, .storage = in.At(storage.items[0]).text, .storage_elements = storage.number, .offset = in.At(value.items[1]).number};
  for (size_t item : in.At(value.items[2]).items) t.shape.push_back(in.At(item).number);
  for (size_t item : in.At(value.items[3]).items) t.stride.push_back(in.At(item).number);
  return t;
}

void AppendText(std::string& out, std::string_view text) {
  const uint32_t size = static_cast<uint32_t>(text.size());
  out += static_cast<char>(kBinUnicode);
  out.append(reinterpret_cast<const char*>(&size), sizeof size).append(text);
}

void AppendNumber(std::string& out, int64_t n) {
  const bool small = n >= 0 && n <= std::numeric_limits<int32_t>::max();
  out += static_cast<char>(small ? kBinInt : kLong1);
  if (!small) out += static_cast<char>(sizeof n);
  out.append(reinterpret_cast<const char*>(&n), small ? sizeof(int32_t) : sizeof n);
}

void AppendTuple(std::string& out, const std::vector<int64_t>& numbers) {
  out += static_cast<char>(kMark);
  for (int64_t n : numbers) AppendNumber(out, n);
  out += static_cast<char>(kTuple);
}

}  // namespace

std::vector<PickledTensor> ParsePickle(std::span<const char> bytes, const std::string& where) {
  Interpreter in(bytes, where);
  const Value* dict = &in.At(in.Run());
  if (dict->kind == Kind::kDict)
    for (size_t i = 0; i + 1 < dict->items.size(); i += 2)
      if (in.At(dict->items[i]).text == "model_state" && in.At(dict->items[i + 1]).kind == Kind::kDict) {
        dict = &in.At(dict->items[i + 1]);
        break;
      }
  if (dict->kind != Kind::kDict) throw Error("{}: holds no state dict (name → tensor)", where);
  std::vector<PickledTensor> tensors;
  for (size_t i = 0; i + 1 < dict->items.size(); i += 2) {
    const Value &key = in.At(dict->items[i]), &value = in.At(dict->items[i + 1]);
    if (key.kind == Kind::kText && value.kind == Kind::kTensor) tensors.push_back(Describe(in, key.text, value));
  }
  if (tensors.empty()) throw Error("{}: its state dict holds no tensors", where);
  return tensors;
}

std::string FormatPickle(const std::vector<PickledTensor>& tensors) {
  constexpr std::string_view kNewDict = "ccollections\nOrderedDict\n)R";
  std::string out = "\x80\x02";
  out.append(kNewDict).append("(");
  for (const PickledTensor& t : tensors) {
    AppendText(out, t.name);
    out.append("ctorch._utils\n_rebuild_tensor_v2\n((");
    AppendText(out, "storage");
    for (const StorageType& type : kStorageTypes)
      if (type.dtype == t.dtype) out.append("ctorch\n").append(type.torch).append("\n");
    AppendText(out, t.storage);
    AppendText(out, "cpu");
    AppendNumber(out, t.storage_elements);
    out.append("tQ");
    AppendNumber(out, t.offset);
    AppendTuple(out, t.shape);
    AppendTuple(out, t.stride);
    out.append("\x89").append(kNewDict).append("tR");
  }
  return out + "u.";
}

}  // namespace bamba
