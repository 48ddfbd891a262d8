// Parses the texts that describe launchers' parameters (bind.h gives their form), once when the module loads.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace pyface::bind {

struct Parameter {
  std::string name;   // used in lengths
  std::string label;  // used in error messages: "grid.height"
  std::vector<std::string> shape;
  bool is_array = false, is_optional = false;
  std::string comparison;  // "", ">" or ">="
};

// Splits "a, b[c,d]" at commas outside brackets, and drops blanks.
inline std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : text) {
    depth += (c == '[' || c == '(') - (c == ']' || c == ')');
    if (c == ',' && depth == 0)
      parts.emplace_back();
    else if (c != ' ')
      parts.back() += c;
  }
  return parts;
}

inline std::vector<Parameter> parse(const std::string& text, const std::string& owner = "") {
  std::vector<Parameter> parameters;
  for (std::string part : split(text)) {
    Parameter p;
    const size_t end = part.find_first_of("[?>");
    p.name = part.substr(0, end);
    p.label = owner + p.name;
    if (end != std::string::npos) part = part.substr(end);
    p.is_array = part[0] == '[';
    p.is_optional = p.is_array && part.back() == '?';
    if (p.is_array) p.shape = split(part.substr(1, part.find(']') - 1));
    if (part[0] == '>') p.comparison = part;
    parameters.push_back(p);
  }
  return parameters;
}

// The integers of one call, each in its slot.
using Values = std::array<int64_t, 32>;

// Finds the slot of an integer by its name; if several have that name, the last one's.
class Scope {
 public:
  int add(const std::string& name) {
    if (names_.size() == Values().size()) throw std::logic_error("more integers than a call holds: " + name);
    names_.push_back(name);
    return static_cast<int>(names_.size()) - 1;
  }
  int find(const std::string& name) const {
    for (size_t i = names_.size(); i-- > 0;)
      if (names_[i] == name) return static_cast<int>(i);
    throw std::logic_error("a length refers to an unknown integer: " + name);
  }

 private:
  std::vector<std::string> names_;
};

// A length: whole numbers, names, + - * / and parentheses.
class Length {
 public:
  Length(const std::string& text, const Scope& scope) : rest_(text.c_str()), scope_(&scope) {
    sum();
    if (*rest_ != 0) throw std::logic_error("not a length: " + text);
  }

  int64_t operator()(const Values& values) const {
    int64_t stack[8];
    int top = -1;
    for (const auto& [kind, operand] : steps_) {
      if (kind == 'n' || kind == 'v') {
        stack[++top] = kind == 'n' ? operand : values[operand];
        continue;
      }
      int64_t& left = stack[top - 1];
      const int64_t right = stack[top--];
      left = kind == '+' ? left + right : kind == '-' ? left - right : kind == '*' ? left * right : left / right;
    }
    return stack[0];
  }

 private:
  void sum() {
    product();
    while (*rest_ == '+' || *rest_ == '-') operation(&Length::product);
  }
  void product() {
    atom();
    while (*rest_ == '*' || *rest_ == '/') operation(&Length::atom);
  }
  void operation(void (Length::*operand)()) {
    const char kind = *rest_++;
    (this->*operand)();
    steps_.push_back({kind, 0});
  }
  void atom() {
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    std::string name;
    if (*rest_ == '(') {
      ++rest_;
      sum();
      if (*rest_++ != ')') throw std::logic_error("a length lacks a parenthesis");
      return;
    }
    while (is_digit(*rest_) || *rest_ == '_' || (*rest_ >= 'a' && *rest_ <= 'z')) name += *rest_++;
    if (!name.empty() && is_digit(name[0]))
      steps_.push_back({'n', std::stoll(name)});
    else
      steps_.push_back({'v', scope_->find(name)});
  }

  std::vector<std::pair<char, int64_t>> steps_;  // in reverse Polish notation
  const char* rest_;                             // used by the constructor only, as is scope_
  const Scope* scope_;
};

inline std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

// The lengths of an array's dimensions.
struct Shape {
  void resolve(const Parameter& p, const Scope& scope) {
    for (const std::string& text : p.shape) lengths.emplace_back(text, scope);
  }
  int64_t size(const Values& values) const {
    int64_t product = 1;
    for (const Length& length : lengths) product *= length(values);
    return product;
  }

  std::vector<Length> lengths;
};

}  // namespace pyface::bind
