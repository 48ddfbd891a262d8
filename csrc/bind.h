// A launcher's C++ signature becomes its Python function.
//
//   def<cpu::nms>(m, "nms(boxes[batch,n,4], scores[batch,n], classes[batch,n]?, ..., batch, n, ...)");
//
// The types come from the launcher, so none can be mistaken for another. The text names the parameters in their order
// and says how many numbers each array holds, in terms of the integers beside it (also those within a struct). It gives
// the length checks and the error messages; with a text that does not fit its launcher, the module's import fails.
//
//   name            a number, a flag, an enumeration (as an integer), or a struct (as a tuple of its fields)
//   name[a,b*c+1]   an array: a torch.Tensor of this element type with a * (b * c + 1) elements (contiguous, as
//                   contiguous_as() in pyface/ops/extension.py makes it: checking again would cost 50 ns per array); a
//                   Map: a tensor of any strides with exactly this shape; an array of structs or of doubles: a list
//   name[a]?        the same, or None for nullptr
//   name> name>=    a float that others are compared with: rounded down or up, so that the comparison in float has
//                   the same result as in double
//
// Tensors are read through their Python methods; no torch header is needed, and the caller's arguments keep them alive.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <exception>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops.h"
#include "signature.h"

namespace pyface::bind {

namespace py = pybind11;

// --- the caller's arguments ------------------------------------------------------------------------------------------

struct Call {
  const std::string& op;
  Values values{};
  py::handle dtype;  // of all maps of the call
};

inline std::string text_of(py::handle value) { return py::str(value); }

inline std::string type_name(py::handle value) { return Py_TYPE(value.ptr())->tp_name; }

// Throws "nms: keep must have 10 elements, got 5." as a Python exception.
template <class Error>
[[noreturn]] void refuse(const Call& call, const Parameter& p, const std::string& must, const std::string& got) {
  PyErr_Clear();
  throw Error(call.op + ": " + p.label + " must " + must + ", got " + got + ".");
}

[[noreturn]] inline void refuse_type(const Call& call, const Parameter& p, const std::string& accepted,
                                     const std::string& got) {
  refuse<py::type_error>(call, p, "be " + accepted, got);
}

[[noreturn]] inline void refuse_length(const Call& call, const Parameter& p, const std::string& accepted,
                                       const std::string& got) {
  refuse<py::value_error>(call, p, "have " + accepted, got);
}

// torch's dtypes, each of which exists once. Never freed, like the module. def() uses them first, when the module
// loads: an import during a call might let another thread run this code.
struct Dtypes {
  py::object float32, float16, bfloat16, int64, int32, int8, uint8, boolean;

  static const Dtypes& get() {
    static const Dtypes* const all = [] {
      const py::module_ torch = py::module_::import("torch");
      const auto of = [&](const char* name) { return py::object(torch.attr(name)); };
      return new Dtypes{of("float32"), of("float16"), of("bfloat16"), of("int64"),
                        of("int32"),   of("int8"),    of("uint8"),    of("bool")};
    }();
    return *all;
  }
};

// The dtypes that an array of T may have; uint8_t serves for flags too.
template <class T>
std::array<py::handle, 2> dtypes_of() {
  const Dtypes& all = Dtypes::get();
  if constexpr (std::is_same_v<T, float>) return {all.float32, all.float32};
  if constexpr (std::is_same_v<T, int64_t>) return {all.int64, all.int64};
  if constexpr (std::is_same_v<T, int32_t>) return {all.int32, all.int32};
  if constexpr (std::is_same_v<T, int8_t>) return {all.int8, all.int8};
  if constexpr (std::is_same_v<T, uint8_t>) return {all.boolean, all.uint8};
}

// A torch.Tensor through its Python methods, which cost some 30 ns each.
class Tensor {
 public:
  Tensor(py::handle value, const Call& call, const Parameter& p) : value_(value), call_(call), p_(p) {}

  py::object dtype() const { return attribute(names().dtype); }
  py::object shape() const { return attribute(names().shape); }
  py::object stride() const { return method(names().stride); }
  int64_t numel() const { return PyLong_AsLongLong(method(names().numel).ptr()); }
  bool is_contiguous() const { return method(names().is_contiguous).ptr() == Py_True; }
  void* data() const { return PyLong_AsVoidPtr(method(names().data_ptr).ptr()); }

 private:
  struct Names {
    PyObject *dtype, *shape, *stride, *numel, *is_contiguous, *data_ptr;
  };
  static const Names& names() {
    static const Names all{PyUnicode_InternFromString("dtype"),         PyUnicode_InternFromString("shape"),
                           PyUnicode_InternFromString("stride"),        PyUnicode_InternFromString("numel"),
                           PyUnicode_InternFromString("is_contiguous"), PyUnicode_InternFromString("data_ptr")};
    return all;
  }
  py::object attribute(PyObject* name) const { return checked(PyObject_GetAttr(value_.ptr(), name)); }
  py::object method(PyObject* name) const { return checked(PyObject_CallMethodNoArgs(value_.ptr(), name)); }
  py::object checked(PyObject* result) const {
    if (!result && PyErr_ExceptionMatches(PyExc_AttributeError))
      refuse_type(call_, p_, "a torch.Tensor", type_name(value_));
    if (!result) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
  }

  py::handle value_;
  const Call& call_;
  const Parameter& p_;
};

// The entries of a tuple or list.
class Entries {
 public:
  Entries(py::handle value, const Call& call, const Parameter& p) : value_(value.ptr()) {
    if (!PyTuple_Check(value_) && !PyList_Check(value_)) refuse_type(call, p, "a tuple or list", type_name(value));
  }
  int64_t size() const { return PySequence_Fast_GET_SIZE(value_); }
  py::handle operator[](int64_t i) const { return PySequence_Fast_GET_ITEM(value_, i); }

  void expect(int64_t size, const std::string& what, const Call& call, const Parameter& p) const {
    if (this->size() != size) refuse_length(call, p, std::to_string(size) + " " + what, std::to_string(this->size()));
  }

 private:
  PyObject* value_;
};

// --- readers: from a Python value to a parameter ---------------------------------------------------------------------
//
// A reader is made from its parameter, taking slots for the integers that it uses; resolve() then turns lengths
// into slots. In a call, measure() puts integers into their slots, and read() checks the rest and writes the value.

template <class T, class = void>
struct Reader;

template <class T>
constexpr bool is_number = std::is_arithmetic_v<T> || std::is_enum_v<T>;
template <class T>
constexpr bool is_integer = std::is_integral_v<T> && !std::is_same_v<T, bool>;

template <class T>
struct Reader<T, std::enable_if_t<is_number<T>>> {
  Reader(const Parameter& p, Scope& scope) : p(p) {
    if (p.is_array) throw std::logic_error(p.label + " is not an array");
    if constexpr (is_integer<T>) slot = scope.add(p.name);
  }
  void resolve(const Scope&) {}

  void measure(py::handle value, Call& call) const {
    if constexpr (is_integer<T>) {
      const int64_t number = integer(value, call);
      const bool fits = sizeof(T) == 8 ? std::is_signed_v<T> || number >= 0
                                       : number >= int64_t(std::numeric_limits<T>::min()) &&
                                             number <= int64_t(std::numeric_limits<T>::max());
      if (!fits)
        refuse<py::value_error>(call, p, "fit into " + std::to_string(8 * sizeof(T)) + " bits", text_of(value));
      call.values[slot] = number;
    }
    if constexpr (std::is_same_v<T, Dtype>) call.dtype = value;
  }

  void read(py::handle value, const Call& call, T& out) const {
    if constexpr (is_integer<T>)
      out = static_cast<T>(call.values[slot]);
    else if constexpr (std::is_same_v<T, Dtype>)
      out = map_dtype(value, call);
    else if constexpr (std::is_floating_point_v<T>)
      out = floating(value, call);
    else
      out = static_cast<T>(integer(value, call));
  }

  Parameter p;
  int slot = -1;

 private:
  int64_t integer(py::handle value, const Call& call) const {
    const int64_t number = PyLong_AsLongLong(value.ptr());
    if (number == -1 && PyErr_Occurred()) refuse_type(call, p, "an int of 64 bits", text_of(value));
    return number;
  }

  T floating(py::handle value, const Call& call) const {
    const double number = PyFloat_AsDouble(value.ptr());
    if (number == -1 && PyErr_Occurred()) refuse_type(call, p, "a number", type_name(value));
    if (p.comparison == ">") return float_below(number);
    if (p.comparison == ">=") return float_above(number);
    return static_cast<T>(number);
  }

  Dtype map_dtype(py::handle value, const Call& call) const {
    if (value.is(Dtypes::get().float32)) return Dtype::Float32;
    if (value.is(Dtypes::get().float16)) return Dtype::Float16;
    if (value.is(Dtypes::get().bfloat16)) return Dtype::BFloat16;
    refuse_type(call, p, "torch.float32, torch.float16 or torch.bfloat16", text_of(value));
  }
};

// An address, passed on unchanged: a workspace, a stream.
template <>
struct Reader<void*> {
  Reader(const Parameter& p, Scope&) : p(p) {}
  void resolve(const Scope&) {}
  void measure(py::handle, Call&) const {}
  void read(py::handle value, const Call& call, void*& out) const {
    out = PyLong_AsVoidPtr(value.ptr());
    if (!out && PyErr_Occurred()) refuse_type(call, p, "an address", type_name(value));
  }

  Parameter p;
};

template <class T>
struct Reader<T*, std::enable_if_t<is_number<T>>> {
  Reader(const Parameter& p, Scope&) : p(p) {
    if (!p.is_array) throw std::logic_error(p.label + " is an array and has no length");
  }
  void resolve(const Scope& scope) { shape.resolve(p, scope); }
  void measure(py::handle, Call&) const {}

  void read(py::handle value, const Call& call, T*& out) const {
    out = nullptr;
    if (p.is_optional && value.is_none()) return;
    const Tensor tensor(value, call, p);
    const py::object dtype = tensor.dtype();
    const auto accepted = dtypes_of<std::remove_const_t<T>>();
    if (!dtype.is(accepted[0]) && !dtype.is(accepted[1])) refuse_type(call, p, text_of(accepted[0]), text_of(dtype));
    const int64_t size = shape.size(call.values), got = tensor.numel();
    if (got != size)
      refuse_length(call, p, std::to_string(size) + " elements [" + joined(p.shape) + "]", std::to_string(got));
    out = static_cast<T*>(tensor.data());
  }

  Parameter p;
  Shape shape;
};

template <>
struct Reader<Map> {
  Reader(const Parameter& p, Scope&) : p(p) {
    if (p.shape.size() != 4) throw std::logic_error(p.label + " is a map and has four dimensions");
  }
  void resolve(const Scope& scope) { shape.resolve(p, scope); }
  void measure(py::handle, Call&) const {}

  void read(py::handle value, const Call& call, Map& out) const {
    out = {};
    if (p.is_optional && value.is_none()) return;
    const Tensor tensor(value, call, p);
    const py::object dtype = tensor.dtype(), sizes = tensor.shape(), stride = tensor.stride();
    if (!dtype.is(call.dtype)) refuse_type(call, p, text_of(call.dtype) + " as dtype says", text_of(dtype));
    int64_t strides[4];
    const Entries size_entries(sizes, call, p), stride_entries(stride, call, p);
    size_entries.expect(4, "dimensions", call, p);
    for (int i = 0; i < 4; ++i) {
      if (PyLong_AsLongLong(size_entries[i].ptr()) != shape.lengths[i](call.values))
        refuse_length(call, p, "the shape [" + joined(p.shape) + "]", text_of(sizes));
      strides[i] = PyLong_AsLongLong(stride_entries[i].ptr());
    }
    out = {tensor.data(), strides[0], strides[1], strides[2], strides[3]};
  }

  Parameter p;
  Shape shape;
};

// An image: a contiguous uint8 tensor [height, width, 3].
template <>
struct Reader<Image> {
  Reader(const Parameter& p, Scope&) : p(p) {}
  void resolve(const Scope&) {}
  void measure(py::handle, Call&) const {}

  void read(py::handle value, const Call& call, Image& out) const {
    const Tensor tensor(value, call, p);
    const py::object dtype = tensor.dtype(), sizes = tensor.shape();
    if (!dtype.is(Dtypes::get().uint8)) refuse_type(call, p, "torch.uint8", text_of(dtype));
    const Entries entries(sizes, call, p);
    entries.expect(3, "dimensions", call, p);
    int64_t side[3];
    for (int i = 0; i < 3; ++i) side[i] = PyLong_AsLongLong(entries[i].ptr());
    const int64_t most = std::numeric_limits<int32_t>::max();
    if (side[0] > most || side[1] > most || side[2] != 3)
      refuse_length(call, p, "the shape [height, width, 3]", text_of(sizes));
    if (!tensor.is_contiguous()) refuse_type(call, p, "contiguous", "strides " + text_of(tensor.stride()));
    out = {static_cast<const uint8_t*>(tensor.data()), static_cast<int32_t>(side[0]), static_cast<int32_t>(side[1])};
  }

  Parameter p;
};

// A struct. `Fields` lists its fields: kText like the parameters of a launcher, kMembers as pointers to members.
template <class S>
struct Fields;

template <class Member>
struct MemberType;
template <class S, class M>
struct MemberType<M S::*> {
  using Type = M;
};

template <class S, class Members = std::remove_const_t<decltype(Fields<S>::kMembers)>>
struct StructReader;

template <class S, class... Members>
struct StructReader<S, std::tuple<Members...>> {
  StructReader(const Parameter& p, Scope& scope) : StructReader(p, scope, std::index_sequence_for<Members...>()) {}

  void resolve(const Scope& scope) {
    std::apply([&](auto&... reader) { (reader.resolve(scope), ...); }, readers);
  }
  void measure(py::handle value, Call& call) const {
    const Entries entries(value, call, p);
    entries.expect(sizeof...(Members), "fields (" + fields + ")", call, p);
    int64_t i = 0;
    std::apply([&](const auto&... reader) { (reader.measure(entries[i++], call), ...); }, readers);
  }
  void read(py::handle value, Call& call, S& out) const {
    read(Entries(value, call, p), call, out, std::index_sequence_for<Members...>());
  }

  Parameter p;
  std::string fields = Fields<S>::kText;
  std::tuple<Reader<typename MemberType<Members>::Type>...> readers;

 private:
  using Readers = decltype(readers);

  template <size_t... I>
  StructReader(const Parameter& p, Scope& scope, std::index_sequence<I...>)
      : p(p), readers(made(parse(Fields<S>::kText, p.label + "."), scope, std::index_sequence<I...>())) {}

  template <size_t... I>
  static Readers made(const std::vector<Parameter>& parts, Scope& scope, std::index_sequence<I...>) {
    if (parts.size() != sizeof...(I)) throw std::logic_error(parts[0].label + ": a struct's text does not fit it");
    return Readers{std::tuple_element_t<I, Readers>(parts[I], scope)...};
  }

  template <size_t... I>
  void read(const Entries& entries, Call& call, S& out, std::index_sequence<I...>) const {
    (std::get<I>(readers).read(entries[I], call, out.*std::get<I>(Fields<S>::kMembers)), ...);
  }
};

template <class S>
struct Reader<S, std::enable_if_t<(sizeof(Fields<S>) > 0)>> : StructReader<S> {
  using StructReader<S>::StructReader;
};

// Reads entries one after the other. Only lengths within the same entry may refer to its integers.
template <class E>
struct EntriesReader {
  EntriesReader(const Parameter& p, Scope&) : p(p) {}

  void resolve(const Scope& scope) {
    shape.resolve(p, scope);
    Parameter entry = p;
    entry.is_array = false;
    Scope inner = scope;
    element.emplace(entry, inner);
    element->resolve(inner);
  }
  void measure(py::handle, Call&) const {}
  void read_entries(const Entries& entries, Call& call, E* out) const {
    for (int64_t i = 0; i < entries.size(); ++i) {
      element->measure(entries[i], call);
      element->read(entries[i], call, out[i]);
    }
  }

  Parameter p;
  Shape shape;
  std::optional<Reader<E>> element;
};

template <class E>
struct Reader<std::vector<E>> : EntriesReader<E> {
  using EntriesReader<E>::EntriesReader;
  void read(py::handle value, Call& call, std::vector<E>& out) const {
    const Entries entries(value, call, this->p);
    entries.expect(this->shape.size(call.values), "entries", call, this->p);
    out.resize(entries.size());
    this->read_entries(entries, call, out.data());
  }
};

template <class E, size_t N>
struct Reader<E[N]> : EntriesReader<E> {
  using EntriesReader<E>::EntriesReader;
  void read(py::handle value, Call& call, E (&out)[N]) const {
    const Entries entries(value, call, this->p);
    const int64_t size = this->p.is_array ? this->shape.size(call.values) : N;
    entries.expect(size, "entries", call, this->p);
    if (size > int64_t(N))
      refuse_length(call, this->p, "at most " + std::to_string(N) + " entries", std::to_string(size));
    this->read_entries(entries, call, out);
  }
};

// --- functions -------------------------------------------------------------------------------------------------------

// What a call stores for a parameter, and how it passes that on.
template <class A>
struct Passed {
  using Held = std::remove_cv_t<std::remove_reference_t<A>>;
  static Held& pass(Held& held) { return held; }
};

template <class E>
struct Passed<const E*> {
  static constexpr bool is_list = std::is_class_v<E> || std::is_same_v<E, double>;
  using Held = std::conditional_t<is_list, std::vector<E>, const E*>;
  static const E* pass(Held& held) {
    if constexpr (is_list)
      return held.data();
    else
      return held;
  }
};

template <auto launcher, class = decltype(launcher)>
class Function;

template <auto launcher, class R, class... A>
class Function<launcher, R (*)(A...)> {
 public:
  Function(std::string op, const std::vector<Parameter>& parameters)
      : op_(std::move(op)), readers_(made(parameters, std::index_sequence_for<A...>())) {}

  py::object operator()(PyObject* const* arguments, Py_ssize_t count) const {
    if (count != sizeof...(A))
      throw py::type_error(op_ + " takes " + std::to_string(sizeof...(A)) + " arguments, got " + std::to_string(count) +
                           ".");
    return call(arguments, std::index_sequence_for<A...>());
  }

 private:
  using Readers = std::tuple<Reader<typename Passed<A>::Held>...>;

  template <size_t... I>
  static Readers made(const std::vector<Parameter>& parameters, std::index_sequence<I...>) {
    Scope scope;
    Readers readers{std::tuple_element_t<I, Readers>(parameters[I], scope)...};
    (std::get<I>(readers).resolve(scope), ...);
    return readers;
  }

  template <size_t... I>
  py::object call(PyObject* const* arguments, std::index_sequence<I...>) const {
    Call call{op_};
    std::tuple<typename Passed<A>::Held...> held;
    (std::get<I>(readers_).measure(arguments[I], call), ...);
    (std::get<I>(readers_).read(arguments[I], call, std::get<I>(held)), ...);
    const auto launch = [&] {
      const py::gil_scoped_release release;
      return launcher(Passed<A>::pass(std::get<I>(held))...);
    };
    if constexpr (std::is_void_v<R>) {
      launch();
      return py::none();
    } else {
      return py::cast(launch());
    }
  }

  std::string op_;
  Readers readers_;
};

// What Python calls: like pybind11's functions, but 0.3 us faster, as it neither searches overloads nor makes a tuple.
template <auto launcher>
struct Entry {
  static inline const Function<launcher>* function = nullptr;

  static PyObject* call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    try {
      return (*function)(arguments, count).release().ptr();
    } catch (py::error_already_set& error) {
      error.restore();
    } catch (const py::builtin_exception& error) {
      error.set_error();
    } catch (const std::bad_alloc&) {
      PyErr_NoMemory();
    } catch (const std::invalid_argument& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
  }
};

template <class R, class... A>
constexpr size_t arity(R (*)(A...)) {
  return sizeof...(A);
}

// Adds a launcher to a module. `text` is its name and the parameters that the CPU and the CUDA launcher share. The last
// parameters are the same for all: threads on the CPU; on CUDA a workspace, if it needs one, a device and a stream.
template <auto launcher>
void def(py::module_& m, const std::string& text) {
  Dtypes::get();
  const size_t open = text.find('('), close = text.rfind(')');
  static const std::string op = text.substr(0, open), doc = text;
  std::vector<Parameter> parameters = parse(text.substr(open + 1, close - open - 1));
  const char* const kTails[] = {"threads", "device, stream", "", "workspace, workspace_bytes, device, stream"};
  const size_t tail = arity(launcher) - parameters.size() - 1;
  if (tail > 3 || tail == 2) throw std::logic_error(op + " does not have the parameters of its text: " + text);
  for (const Parameter& p : parse(kTails[tail])) parameters.push_back(p);
  Entry<launcher>::function = new Function<launcher>(op, parameters);  // never freed, like the module
  const auto call = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&Entry<launcher>::call));
  static PyMethodDef method{op.c_str(), call, METH_FASTCALL, doc.c_str()};
  m.add_object(op.c_str(), py::reinterpret_steal<py::object>(PyCFunction_NewEx(&method, nullptr, nullptr)));
}

// The same for a launcher with a workspace, and the function that returns its size.
template <auto launcher, auto workspace>
void def(py::module_& m, const std::string& text) {
  def<launcher>(m, text);
  m.def((text.substr(0, text.find('(')) + "_workspace").c_str(), workspace);
}

}  // namespace pyface::bind
